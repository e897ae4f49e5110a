"""Tools and formats of a request: what may be answered, and how calls and thoughts are told from text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, ModelError
from luthier.engines.guides import grammar_guide, json_guide
from luthier.engines.shaping import Guide
from luthier.server.call_grammar import THOUGHT, CallGrammar
from luthier.server.calls import CallReader
from luthier.server.errors import bad
from luthier.server.requests import JsonFormat, NamedChoice, SchemaFormat, TextFormat
from luthier.server.speech import CallEar, Listener, PlainEar, ThoughtEar
from luthier.server.voice import Voice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.server.requests import ChatRequest, Tool


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What shapes an answer and what reads it."""

    voice: Voice
    opened: bool
    """The prompt has opened a thought."""
    guide: Callable[[], Guide] | None = None
    reader: CallReader | None = None
    many: bool = True

    def listener(self) -> Listener:
        """Return what hears one answer."""
        ear = PlainEar() if self.reader is None else CallEar(self.reader, many=self.many)
        if self.voice.thinks:
            ear = ThoughtEar(ear, opened=self.opened)
        shown = self.voice.shown_special(self.reader.form if self.reader else None)
        if not shown:
            return Listener(ear)
        return Listener(ear, self.voice.served.tokenizer, self.voice.texts.silent - shown)


def offered(body: ChatRequest) -> list[Tool]:
    """Return the tools that the model is told of: all, the one that it must call, or none. Raises ApiError."""
    tools, choice = body.tools or [], body.tool_choice
    if not tools and choice not in (None, "none", "auto"):
        raise bad("tool_choice: there are no tools to choose from; send tools", "tool_choice")
    names = [tool.function.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise bad(f"tools[{place}].function.name: {name!r} is there already", f"tools[{place}].function.name")
    if isinstance(choice, NamedChoice):
        wanted = choice.function.name
        if wanted not in names:
            raise bad(f"tool_choice: there is no tool {wanted!r} among {', '.join(names)}", "tool_choice")
        return [tool for tool in tools if tool.function.name == wanted]
    return [] if choice == "none" else tools


def toolbox_of(body: ChatRequest, voice: Voice, *, opened: bool) -> Toolbox:
    """Return what a request asks for. Raises ApiError for what cannot be honoured."""
    tools = {tool.function.name: tool.function.parameters or {} for tool in offered(body)}
    opened = opened and voice.thinks
    if not tools:
        return Toolbox(voice, opened, _format_guide(body, voice, opened=opened))
    if voice.call_form is None:
        raise bad(f"tools: {voice.name} has a chat template whose calls are not known here; leave tools out", "tools")
    reader = CallReader(voice.call_form, tools)
    many = body.parallel_tool_calls is not False
    if body.tool_choice in (None, "auto"):
        if not isinstance(body.response_format, TextFormat | None):
            raise bad(
                "response_format: together with tools that may or may not be called it is not offered; "
                'send tool_choice: "none" or "required"',
                "response_format",
            )
        return Toolbox(voice, opened, None, reader, many)
    several = many and not isinstance(body.tool_choice, NamedChoice)
    guide = _call_guide(reader, voice, many=several, opened=opened)
    return Toolbox(voice, opened, guide, reader, several)


def _call_guide(reader: CallReader, voice: Voice, *, many: bool, opened: bool) -> Callable[[], Guide]:
    grammar = CallGrammar(reader.form, voice.template.control_tokens)
    return _guide(voice, grammar.text(reader.tools, many=many, opened=opened), "tools")


def _guide(voice: Voice, grammar: str, field: str) -> Callable[[], Guide]:
    served = voice.served
    return _tried(
        field, lambda: grammar_guide(served.tokenizer, voice.vocabulary, grammar, end_ids=served.engine.end_ids)
    )


def _tried(field: str, make: Callable[[], Callable[[], Guide]]) -> Callable[[], Guide]:
    """Return what makes guides, once it has made one that allows a first token. Raises ApiError."""
    try:
        guide = make()
        guide().allowed_V()
    except (ConfigError, ModelError) as error:
        raise bad(f"{field}: {error}", field, "guide") from error
    return guide


def _format_guide(body: ChatRequest, voice: Voice, *, opened: bool) -> Callable[[], Guide] | None:
    """Return what keeps an answer to the format of the request; behind a thought where one is open."""
    asked, served = body.response_format, voice.served
    schema: Mapping[str, Any] | None = None
    if isinstance(asked, SchemaFormat):
        if asked.json_schema.schema_ is None:
            field = "response_format.json_schema.schema"
            raise bad(f"{field} is missing; json_object takes any object", field)
        schema = asked.json_schema.schema_
    elif not isinstance(asked, JsonFormat):
        return None
    if opened:
        return _guide(voice, f"start: thought %json {_text(schema)}\n{THOUGHT}\n", "response_format")
    return _tried(
        "response_format",
        lambda: json_guide(served.tokenizer, voice.vocabulary, schema, end_ids=served.engine.end_ids),
    )


def _text(schema: Mapping[str, Any] | None) -> str:
    import json

    return json.dumps({"type": "object"} if schema is None else schema)
