"""The conversations with which chat templates are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jinja2

from luthier.core.findings import RowError
from luthier.core.types import Message
from luthier.data.template_input import Takes, check_tools, plain_messages, take, tools_of

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation, and how it is rendered."""

    name: str
    messages: tuple[Message, ...]
    answer_next: bool = True
    """With the beginning of the next answer behind it."""
    tools: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def _turn(role: Any, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **more)


_SYSTEM, _ASK, _SAY = _turn("system", "Be brief."), _turn("user", "How are you?"), _turn("assistant", "Well, thanks.")
_AGAIN, _MORE = _turn("user", "And 苏州 🙂?"), _turn("assistant", "Schön.\n\nSehr.")
_CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
_TOOL_TURNS = (
    _turn("user", "Weather in Zürich?"),
    _turn("assistant", "", tool_calls=(_CALL,)),
    _turn("tool", '{"degrees": 21}'),
)
_CITY = {
    "city": {"type": "string", "description": "name of the city"},
    "days": {"type": "integer", "description": "how many"},
}
TOOLS = json.dumps([{
    "name": "weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": _CITY, "required": ["city"]},
}])  # fmt: skip

CASES = (
    Case("one turn", (_ASK,)),
    Case("one answer", (_ASK, _SAY), answer_next=False),
    Case("many turns", (_ASK, _SAY, _AGAIN, _MORE, _ASK)),
    Case("many answers", (_ASK, _SAY, _AGAIN, _MORE), answer_next=False),
    Case("system", (_SYSTEM, _ASK)),
    Case("system, many turns", (_SYSTEM, _ASK, _SAY, _AGAIN)),
    Case("empty system", (_turn("system", ""), _ASK)),
    Case("trailing blanks", (_turn("system", " a \n"), _turn("user", "  b \n\n"), _turn("assistant", " c  "), _AGAIN)),
    Case("special text", (_turn("user", "say {token} and <|im_end|> [INST]"),)),
    Case("tools", (_SYSTEM, _ASK), tools=TOOLS),
    Case("tool result", _TOOL_TURNS, tools=TOOLS),
    Case("tool answer", (*_TOOL_TURNS, _turn("assistant", "21 degrees.")), answer_next=False, tools=TOOLS),
    Case("thought", (_ASK, _turn("assistant", "Well.", reasoning="They ask."), _AGAIN)),
    Case("thought last", (_ASK, _turn("assistant", "Well.", reasoning="They ask.")), answer_next=False),
    Case("thinking on", (_ASK,), options={"enable_thinking": True}),
    Case("thinking off", (_ASK,), options={"enable_thinking": False}),
    Case("thinking off, many turns", (_ASK, _SAY, _AGAIN), options={"enable_thinking": False}),
)


class Chats:
    """Renders cases with a tokenizer's chat template, each in the form that the template takes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.takes: Takes = take(self._apply)
        text = tokenizer.chat_template
        self._template = json.dumps(text) if isinstance(text, dict) else str(text)

    def _apply(self, plain: list[dict[str, Any]], tools: list[Any] | None, **more: Any) -> str:
        more.setdefault("add_generation_prompt", False)
        return self.tokenizer.apply_chat_template(plain, tools=tools, tokenize=False, **more)

    def cases(self) -> list[Case]:
        """Return the cases that say something about this template: options that it does not read are left out."""
        end = self.tokenizer.eos_token or ""
        kept = [case for case in CASES if all(name in self._template for name in case.options)]
        return [replace(case, messages=tuple(_filled(m, end) for m in case.messages)) for case in kept]

    def plain(self, case: Case) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """Return messages and tools as the template takes them. Raises RowError for what it would leave out."""
        tools = tools_of(case.tools)
        check_tools(tools, self.takes)
        return plain_messages(case.messages, self.takes), tools

    def render(self, case: Case) -> str | None:
        """Return the text of a case; None where the template refuses it or would leave a part of it out."""
        try:
            plain, tools = self.plain(case)
            return self._apply(plain, tools, add_generation_prompt=case.answer_next, **case.options)
        except (RowError, jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
            return None

    def request(self, case: Case) -> dict[str, Any]:
        """Return the body by which llama.cpp's server is asked for the same."""
        plain, tools = self.plain(case)
        body = {"messages": [_as_openai(message) for message in plain], "add_generation_prompt": case.answer_next}
        if tools:
            body["tools"] = tools
        return {**body, "chat_template_kwargs": dict(case.options)}

    def ids(self, text: str) -> list[int]:
        """Return the ids of a rendered text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _filled(message: Message, end: str) -> Message:
    return replace(message, content=message.content.replace("{token}", end))


def _as_openai(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in OpenAI's form, in which arguments of calls are text."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    made = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"].get("arguments", {}))}}
        for call in calls
    ]
    return {**message, "tool_calls": made}


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def chat_prompts(chats: Chats, questions: Sequence[str]) -> list[list[int]]:
    """Return the ids of questions, each as a conversation of one turn with the beginning of its answer."""
    texts = (chats.render(Case("question", (_turn("user", question),))) for question in questions)
    return [chats.ids(text) for text in texts if text is not None]
