"""ShareGPT rows: a list of {"from": ..., "value": ...} turns, perhaps followed by chosen and rejected ones."""

from __future__ import annotations

import json
from collections.abc import Mapping

from luthier.core.findings import RowError, words
from luthier.core.registry import FORMATS, PAIR_FORMATS, PROMPT_FORMATS, did_you_mean
from luthier.core.types import Example, Message, Role
from luthier.data.turns import (
    Placed,
    conversation,
    preference,
    question,
    reasoning_of,
    split_thought,
    text_of,
    tools_column,
)

TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ROLES: dict[str, Role] = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}


@FORMATS.register("sharegpt")
def sharegpt(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read turns by the names in `tags`; a leading system turn wins over the system column."""
    field, turns = _conversation(row, columns, tags)
    return conversation(turns, field=field, tools=tools_column(row, columns))


@PROMPT_FORMATS.register("sharegpt")
def sharegpt_prompt(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read turns up to the last question; an answer behind it is kept as the column "answer"."""
    field, turns = _conversation(row, columns, tags)
    return question(turns, row, field=field, tools=tools_column(row, columns))


@PAIR_FORMATS.register("sharegpt")
def sharegpt_pair(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read turns that end with the question, and two answers, each a turn."""
    tag = {**TAGS, **tags}
    return preference(
        row,
        columns,
        context=lambda: _turns(row, columns.get("messages", "conversations"), tag),
        turn=lambda value, where: _turn(value, where, tag),
        system=_optional(row, columns, "system"),
        tools=tools_column(row, columns),
    )


def _conversation(
    row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]
) -> tuple[str, list[Placed]]:
    field = columns.get("messages", "conversations")
    turns = _turns(row, field, {**TAGS, **tags})
    system = _optional(row, columns, "system")
    if system and turns[0][1].role != "system":
        turns.insert(0, ("system", Message(role="system", content=system)))
    return field, turns


def _optional(row: Mapping[str, object], columns: Mapping[str, str], role: str) -> str:
    return text_of(row, columns.get(role, role), role, required=False)


def _turns(row: Mapping[str, object], field: str, tag: Mapping[str, str]) -> list[Placed]:
    turns = row.get(field)
    if not isinstance(turns, (list, tuple)) or not turns:
        if field not in row:
            text_of(row, field, "messages")
        raise RowError("wrong_type", field, "a list of turns", turns)
    return [(f"{field}[{i}]", _turn(turn, f"{field}[{i}]", tag)) for i, turn in enumerate(turns)]


def _turn(turn: object, where: str, tag: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("wrong_type", where, f"an object with {tag['role_tag']!r} and {tag['content_tag']!r}", turn)
    names = {tag[each]: each for each in _ROLES}
    said = str(turn.get(tag["role_tag"]))
    if said not in names:
        hint = did_you_mean(said, list(names)) or "; name it in tags"
        raise RowError("unknown_role", f"{where}.{tag['role_tag']}", f"one of {', '.join(names)}", said, hint[2:])
    content = text_of(turn, tag["content_tag"], "content_tag", required=False)
    role = _ROLES[names[said]]
    reasoning = reasoning_of(turn) if role == "assistant" else ""
    if names[said] != "function_tag":
        return Message(role=role, content=content, reasoning=reasoning)
    thought, called = split_thought(content)
    return Message(role=role, content="", tool_calls=_calls(called, where), reasoning=reasoning or thought)


def _calls(content: str, where: str) -> tuple[Mapping[str, object], ...]:
    try:
        calls = json.loads(content)
    except ValueError as error:
        raise RowError("broken_json", where, "JSON with name and arguments", words(str(error))) from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowError("wrong_type", where, 'objects with "name" and "arguments"', calls)
    return tuple(calls)
