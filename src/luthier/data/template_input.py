"""What a chat template is given: messages in the form that it reads, and a refusal of what it would drop.

Templates differ in the form of tool calls (arguments as an object or as text, with or without ids) and of thoughts, and
many leave out what they do not know. So each is tried once with a short conversation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import jinja2

from luthier.core.findings import RowError, words
from luthier.core.types import Message
from luthier.data.chat_format import THINK
from luthier.data.turns import split_thought

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Render = Callable[[list[dict[str, Any]], list[Any] | None], str]

_USER = {"role": "user", "content": "question"}
_TOOL = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": {}}}
_REMEDY = "name a template with a tool format, or leave tools out"


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a template wants the calls of an assistant turn."""

    as_text: bool
    """Arguments are JSON text."""
    ids: bool
    """Calls and results have ids of nine letters and digits."""


@dataclass(frozen=True, slots=True)
class Takes:
    """What a template writes of what it is given."""

    tools: bool
    calls: CallForm | None
    results: bool
    thought_field: str
    """Field of a message for thoughts; empty: they stand in the content."""
    splits: bool
    """Thoughts that are marked in the content are not told from the answer, so that they go into the field."""
    thoughts: bool
    """Thoughts of the last answer are written at all."""


def take(render: Render) -> Takes:
    """Return what the template behind `render` takes."""
    tools = "probe_tool" in _tried(render, [_USER], [_TOOL])
    forms = (CallForm(*each) for each in product((False, True), repeat=2))
    calls = next((form for form in forms if _shows_call(render, form)), None)
    answer = {"role": "assistant", "content": "answer"}
    result = {"role": "tool", "content": "probe_result", **({"tool_call_id": _id_of(0)} if calls and calls.ids else {})}
    results = "probe_result" in _tried(render, [*(_called(calls) if calls else [_USER, answer]), result])
    named = ("reasoning_content", "thinking")
    field = next((n for n in named if "probe_thought" in _tried(render, [_USER, {**answer, n: "probe_thought"}])), "")
    marked = _tried(render, [_USER, {**answer, "content": _joined("probe_thought", "answer")}])
    splits = bool(field) and marked != _tried(render, [_USER, {**answer, field: "probe_thought"}])
    return Takes(tools, calls, results, field, splits, bool(field) or "probe_thought" in marked)


def _tried(render: Render, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
    try:
        return render(messages, tools)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return ""


def _called(form: CallForm) -> list[dict[str, Any]]:
    call = {"name": "probe_name", "arguments": {"key": "probe_value"}}
    return [_USER, _calls(Message(role="assistant", content="", tool_calls=(call,)).as_dict(), form, 0)]


def _shows_call(render: Render, form: CallForm) -> bool:
    text = _tried(render, _called(form))
    return "probe_name" in text and "probe_value" in text and '\\"' not in text


def _calls(plain: dict[str, Any], form: CallForm, number: int) -> dict[str, Any]:
    """Return an assistant turn with its calls in the form wanted; the first is call `number` of all."""
    listed: list[dict[str, Any]] = []
    for i, call in enumerate(plain["tool_calls"]):
        function = call["function"]
        arguments = function.get("arguments", {})
        if form.as_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        named = {"id": _id_of(number + i)} if form.ids else {}
        listed.append({**call, "function": {**function, "arguments": arguments}, **named})
    return {**plain, "tool_calls": listed}


def _id_of(number: int) -> str:
    return f"call{number:05d}"


def _joined(thought: str, text: str) -> str:
    return f"{THINK[0]}\n{thought}\n{THINK[1]}\n\n{text}"


def tools_of(tools: str | None) -> list[Any] | None:
    """Return the descriptions of tools, each {"type": "function", "function": ...}; raises RowError."""
    if not tools or not tools.strip():
        return None
    try:
        listed = json.loads(tools)
    except ValueError as error:
        raise RowError("broken_json", "tools", "a JSON list of tools", words(str(error))) from error
    listed = listed if isinstance(listed, list) else [listed]
    wrong = next((tool for tool in listed if not isinstance(tool, dict)), None)
    if wrong is not None:
        raise RowError("wrong_type", "tools", "a JSON list of objects", wrong)
    return [tool if "function" in tool else {"type": "function", "function": _bare(tool)} for tool in listed] or None


def _bare(tool: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tool.items() if key != "type"}


def plain_messages(messages: Sequence[Message], takes: Takes) -> list[dict[str, Any]]:
    """Return messages in the form that a template takes; raises RowError for what it would drop."""
    plain: list[dict[str, Any]] = []
    calls = results = 0
    for message in messages:
        each = _with_thought(message, takes)
        if message.tool_calls:
            if takes.calls is None:
                raise RowError("template", "messages", "a template that writes tool calls", _without("them"), _REMEDY)
            each = _calls(each, takes.calls, calls)
            calls, results = calls + len(message.tool_calls), calls
        if message.role == "tool":
            if not takes.results:
                found = _without("results of tools")
                raise RowError("template", "messages", "a template that writes results of tools", found, _REMEDY)
            if takes.calls and takes.calls.ids:
                each["tool_call_id"] = _id_of(results)
            results += 1
        plain.append(each)
    return plain


def check_tools(tools: list[Any] | None, takes: Takes) -> None:
    """Raise RowError when a template would drop descriptions of tools."""
    if tools and not takes.tools:
        raise RowError("template", "tools", "a template that describes tools", _without("tools"), _REMEDY)


def _without(what: str) -> str:
    return words(f"one that leaves out {what}")


def _with_thought(message: Message, takes: Takes) -> dict[str, Any]:
    plain: dict[str, Any] = message.as_dict()
    if message.role != "assistant":
        return plain
    reasoning, content = plain.pop("reasoning_content", ""), message.content
    if not reasoning and takes.splits:
        reasoning, content = split_thought(content)
    if (reasoning or split_thought(content)[0]) and not takes.thoughts:
        raise RowError(
            "template",
            "messages",
            "a template that writes thoughts",
            _without("thoughts"),
            "name a template with thoughts, such as qwen3 or deepseekr1, or remove <think>…</think>",
        )
    if reasoning and not takes.thought_field:
        return {**plain, "content": _joined(reasoning, content)}
    return {**plain, "content": content, **({takes.thought_field: reasoning} if reasoning else {})}


def guard(messages: Sequence[Message], split: Callable[[str], str]) -> list[Message]:
    """Return messages with `split` applied to every text in them; marks of thoughts in answers stay."""

    def answer(text: str) -> str:
        parts = text.split(THINK[0])
        return THINK[0].join(THINK[1].join(split(p) for p in part.split(THINK[1])) for part in parts)

    return [
        replace(
            m,
            content=answer(m.content) if m.role == "assistant" else split(m.content),
            reasoning=split(m.reasoning),
            tool_calls=tuple(deep(call, split) for call in m.tool_calls),
        )
        for m in messages
    ]


def deep(value: Any, change: Callable[[str], str]) -> Any:
    """Return `value` with every text in it changed, keys of objects included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {deep(key, change): deep(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [deep(inner, change) for inner in value]
    return value
