"""What every row format needs: reading a text field, and the order of roles in a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.findings import RowError, words
from luthier.core.registry import did_you_mean
from luthier.core.types import Example, Message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_NEIGHBOURS_SHOWN = 8


def text_of(row: Mapping[str, object], column: str, role: str, *, required: bool = True) -> str:
    """Return the text in `column`; raises RowError when it is missing, empty or no text."""
    if column not in row:
        if not required:
            return ""
        there = [str(name) for name in row]
        near = did_you_mean(column, there)
        raise RowError(
            "missing_column",
            column,
            "a column of this name",
            words(f"columns {', '.join(there[:MAX_NEIGHBOURS_SHOWN]) or 'none'}"),
            f"map it: columns: {{{role}: <your column>}}{near}",
        )
    value = row[column]
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise RowError("wrong_type", column, "text", value, "remove the row, or set bad_rows: skip")
    if required and not value.strip():
        raise RowError("empty_text", column, "text", value, "remove the row, or set bad_rows: skip")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = words(f"an unpaired surrogate at character {error.start}")
        raise RowError("unpaired_surrogate", column, "valid Unicode", found, "write the whole character") from error
    return value


def conversation(messages: Sequence[Message], *, field: str, tools: str | None) -> Example:
    """Split checked messages into context and last answer; raises RowError when the roles are out of order."""
    check_order(messages, field)
    return Example(context=tuple(messages[:-1]), endings=((messages[-1],),), tools=tools)


def check_order(messages: Sequence[Message], field: str) -> None:
    """Check: system only first, then user, then user or tool and assistant in turns, an answer at the end."""
    before = "start"
    for number, message in enumerate(messages):
        allowed = _AFTER[before]
        if message.role not in allowed:
            raise RowError(
                "wrong_role_order",
                f"{field}[{number}]",
                f"role {' or '.join(allowed)} after {before}",
                words(f"role {message.role}"),
                "put the turns in order",
            )
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise RowError("empty_text", f"{field}[{number}]", "an answer", message.content, "remove the row")
        before = message.role
    if before != "assistant":
        raise RowError(
            "no_answer",
            field,
            "an answer of the assistant as the last turn",
            words(f"role {before}"),
            "remove the last turn",
        )


_AFTER: dict[str, tuple[str, ...]] = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
