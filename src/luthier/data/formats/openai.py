"""OpenAI rows: {"messages": [{"role": ..., "content": ...}, ...]}, and TRL's rows in the same turns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from luthier.core.findings import RowError, words
from luthier.core.registry import FORMATS, PAIR_FORMATS, PROMPT_FORMATS, did_you_mean
from luthier.core.types import Example, Message, Role
from luthier.data.turns import (
    Placed,
    answer_turns,
    check_order,
    conversation,
    preference,
    question,
    reasoning_of,
    text_of,
    tools_column,
)

_ROLES = get_args(Role)


@FORMATS.register("openai")
def openai(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read messages with roles system (or developer), user, assistant and tool; tool calls are kept.

    Where there are none, read a prompt and a completion, each a text or messages.
    """
    field, answer = columns.get("messages", "messages"), columns.get("completion", "completion")
    tools = tools_column(row, columns)
    if field in row or answer not in row:
        return conversation(_messages(row, field, tags), field=field, tools=tools)
    before, ending = _asked(row, columns, tags), _completion(row, answer, tags)
    check_order([*before, *ending], answer)
    context, said = ([message for _, message in turns] for turns in (before, ending))
    return Example(context=tuple(context), endings=(tuple(said),), tools=tools)


@PROMPT_FORMATS.register("openai")
def openai_prompt(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read messages, or a prompt (messages or text), up to the last question.

    An answer behind it, or a completion, is kept as the column "answer".
    """
    field, answer = columns.get("messages", "messages"), columns.get("completion", "completion")
    tools = tools_column(row, columns)
    if field in row:
        return question(_messages(row, field, tags), row, field=field, tools=tools)
    turns = _asked(row, columns, tags)
    if row.get(answer):
        turns += _completion(row, answer, tags)[-1:]
    return question(turns, row, field=columns.get("prompt", "prompt"), tools=tools)


@PAIR_FORMATS.register("openai")
def openai_pair(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read messages, or a prompt (messages or text), and two answers: texts, messages, or lists of messages.

    Answers that begin with a system or user message are whole conversations; then no other column is read.
    """
    return preference(
        row,
        columns,
        context=lambda: _asked(row, columns, tags),
        turn=lambda value, where: _message(value, where, tags),
        tools=tools_column(row, columns),
    )


def _asked(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> list[Placed]:
    """Return the turns before an answer: messages, or a prompt of messages or text."""
    field = columns.get("messages", "messages")
    if field in row:
        return _messages(row, field, tags)
    field = columns.get("prompt", "prompt")
    if isinstance(row.get(field), (list, tuple)):
        return _messages(row, field, tags)
    return [(field, Message(role="user", content=text_of(row, field, "prompt")))]


def _completion(row: Mapping[str, object], field: str, tags: Mapping[str, str]) -> list[Placed]:
    return answer_turns(row, field, "completion", lambda value, where: _message(value, where, tags))


def _messages(row: Mapping[str, object], field: str, tags: Mapping[str, str]) -> list[Placed]:
    turns = row.get(field)
    if not isinstance(turns, (list, tuple)) or not turns:
        if field not in row:
            text_of(row, field, "messages")
        raise RowError("wrong_type", field, "a list of messages", turns)
    return [(f"{field}[{i}]", _message(turn, f"{field}[{i}]", tags)) for i, turn in enumerate(turns)]


def _message(turn: object, where: str, tags: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("wrong_type", where, "an object with role and content", turn)
    said = str(turn.get(tags.get("role_tag", "role")))
    role = "system" if said == "developer" else said
    if role not in _ROLES:
        hint = did_you_mean(said, list(_ROLES))
        raise RowError("unknown_role", f"{where}.role", f"one of {', '.join(_ROLES)}", said, hint[2:])
    calls = tuple(
        _call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(turn.get("tool_calls") or [])
    )
    content = _content(turn, tags.get("content_tag", "content"), where)
    reasoning = reasoning_of(turn) if role == "assistant" else ""
    return Message(role=role, content=content, tool_calls=calls, reasoning=reasoning)  # pyright: ignore[reportArgumentType]


def _content(turn: Mapping[str, object], field: str, where: str) -> str:
    """Return the text of a turn, which may stand in parts; raises RowError for parts that are no text."""
    parts = turn.get(field)
    if not isinstance(parts, (list, tuple)):
        return text_of(turn, field, "content", required=False)
    other = next((part for part in parts if not isinstance(part, Mapping) or part.get("type") != "text"), None)
    if other is not None:
        remedy = "luthier trains text models: take the row out, or set bad_rows: skip"
        raise RowError("multimodal", f"{where}.{field}", "parts of text only", other, remedy)
    return "".join(text_of(part, "text", "content", required=False) for part in parts)


def _call(call: Any, where: str) -> Mapping[str, object]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise RowError("wrong_type", where, 'an object with "function"', call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise RowError("broken_json", f"{where}.function.arguments", "JSON", words(str(error))) from error
    return {"name": function["name"], "arguments": arguments}
