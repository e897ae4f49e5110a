"""Messages of a request -> the prompt, through the model's chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.types import Message
from luthier.data.chat_format import THINK
from luthier.server.errors import bad
from luthier.server.requests import AssistantMessage, ToolMessage
from luthier.server.tools import offered

if TYPE_CHECKING:
    from luthier.server.requests import ChatRequest, TextPart
    from luthier.server.voice import Voice

_OPENING_TOKENS = 24
"""A thought is opened within this many tokens at the end of a prompt, if at all."""


def read_conversation(body: ChatRequest, voice: Voice) -> tuple[list[int], bool]:
    """Return the prompt, and whether it opens a thought. Raises ApiError for what the template does not take."""
    template = voice.template_with(_variables(body, voice))
    messages = [_message(each, place, body) for place, each in enumerate(body.messages)]
    voice.check_length(sum(len(message.content) + len(message.reasoning) for message in messages), "messages")
    described = [_tool(tool) for tool in offered(body)]
    tools = json.dumps(described) if described else None
    try:
        prompt = template.prompt(messages, tools)
    except DataError as error:
        raise bad(str(error), "tools" if "[tools]" in str(error) else "messages", "template") from error
    if not prompt:
        raise bad("the chat template makes an empty prompt of these messages", "messages")
    end = template.tokenizer.decode(prompt[-_OPENING_TOKENS:], skip_special_tokens=False)
    opening, closing = THINK
    return prompt, end.rfind(opening) > end.rfind(closing)


def _variables(body: ChatRequest, voice: Voice) -> dict[str, Any]:
    given: dict[str, Any] = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is None or "reasoning_effort" in given:
        return given
    if "reasoning_effort" not in voice.variables:
        raise bad("reasoning_effort: this model's chat template does not know it; leave it out", "reasoning_effort")
    return {**given, "reasoning_effort": body.reasoning_effort}


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.function
    plain = {"name": function.name, "description": function.description or "", "parameters": function.parameters or {}}
    return {"type": "function", "function": plain}


def _message(message: Any, place: int, body: ChatRequest) -> Message:
    content = _text(message.content)
    if isinstance(message, AssistantMessage):
        calls = tuple(
            {"name": call.function.name, "arguments": _arguments(call.function.arguments, place, number)}
            for number, call in enumerate(message.tool_calls or [])
        )
        return Message(
            role="assistant",
            content=content or message.refusal or "",
            tool_calls=calls,
            reasoning=message.reasoning_content or "",
        )
    if isinstance(message, ToolMessage):
        _check_answered(message, place, body)
        return Message(role="tool", content=content)
    return Message(role="system" if message.role == "developer" else message.role, content=content)


def _text(content: str | list[TextPart] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _arguments(text: str, place: int, number: int) -> Any:
    where = f"messages[{place}].tool_calls[{number}].function.arguments"
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise bad(f"{where}: arguments are JSON text; {error}", where) from error
    if not isinstance(found, dict):
        raise bad(f"{where}: arguments are a JSON object", where)
    return found


def _check_answered(message: ToolMessage, place: int, body: ChatRequest) -> None:
    earlier = (each for each in body.messages[:place] if isinstance(each, AssistantMessage))
    asked = [call.id for each in earlier for call in each.tool_calls or []]
    if message.tool_call_id not in asked:
        where = f"messages[{place}].tool_call_id"
        there = ", ".join(asked) or "none"
        raise bad(f"{where}: no earlier message calls {message.tool_call_id!r}; calls so far: {there}", where)
