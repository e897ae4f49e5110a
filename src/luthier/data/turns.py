"""What every row format needs: reading a text field, and the order of roles in a conversation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from luthier.core.findings import RowError, words
from luthier.core.registry import did_you_mean
from luthier.core.types import Example, Message
from luthier.data.chat_format import THINK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_NEIGHBOURS_SHOWN = 8
Placed = tuple[str, Message]
"""A turn and the field that it stands in, such as conversations[2]."""


def text_of(row: Mapping[str, object], column: str, role: str, *, required: bool = True) -> str:
    """Return the text in `column`; raises RowError when it is missing, empty or no text."""
    if column not in row:
        if not required:
            return ""
        raise missing(row, column, role)
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


def missing(row: Mapping[str, object], column: str, role: str) -> RowError:
    """Return the error of a row without `column`, naming those that are there."""
    there = [str(name) for name in row]
    near = did_you_mean(column, there)
    return RowError(
        "missing_column",
        column,
        "a column of this name",
        words(f"columns {', '.join(there[:MAX_NEIGHBOURS_SHOWN]) or 'none'}"),
        f"map it: columns: {{{role}: <your column>}}{near}",
    )


def tools_column(row: Mapping[str, object], columns: Mapping[str, str]) -> str | None:
    """Return the descriptions of tools as JSON; None where the row has none."""
    tools = row.get(columns.get("tools", "tools"))
    return (tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)) if tools else None


REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn that hold what was thought before an answer."""


def reasoning_of(turn: Mapping[str, object]) -> str:
    """Return the thought of a turn that stands in a field of its own, or an empty text; raises RowError."""
    field = next((name for name in REASONING if turn.get(name)), None)
    return text_of(turn, field, field) if field else ""


def split_thought(text: str) -> tuple[str, str]:
    """Return the thought that an answer begins with, and the rest.

    >>> split_thought("<think>\\nHm.\\n</think>\\n\\nYes.")
    ('Hm.', 'Yes.')
    """
    head, closed, rest = text.partition(THINK[1])
    if not closed or not head.lstrip().startswith(THINK[0]):
        return "", text
    return head.lstrip().removeprefix(THINK[0]).strip("\n"), rest.lstrip("\n")


def conversation(turns: Sequence[Placed], *, field: str, tools: str | None) -> Example:
    """Split checked turns into context and last answer; raises RowError when the roles are out of order."""
    check_order(turns, field)
    messages = [message for _, message in turns]
    return Example(context=tuple(messages[:-1]), endings=((messages[-1],),), tools=tools)


def question(turns: Sequence[Placed], row: Mapping[str, object], *, field: str, tools: str | None) -> Example:
    """Return a conversation up to where it is answered; a last answer is kept as the column "answer".

    Raises RowError when nothing is asked.
    """
    before = _check_roles(turns)
    answer = turns[-1][1].content if before == "assistant" else ""
    context = tuple(message for _, message in (turns[:-1] if before == "assistant" else turns))
    if not context or context[-1].role not in ("user", "tool"):
        last = words(f"role {context[-1].role}") if context else words("no turns")
        raise RowError("no_question", field, "a question as the last turn", last, "add it, or take the row out")
    return Example(context=context, tools=tools, extra=with_answer(row, answer))


def with_answer(row: Mapping[str, object], answer: object) -> dict[str, object]:
    """Return all columns of a row, and its answer, if it has any, as one of them where there is none yet."""
    is_there = answer is not None and bool(str(answer).strip())
    return {"answer": answer, **row} if is_there else dict(row)


def preference(
    row: Mapping[str, object],
    columns: Mapping[str, str],
    *,
    context: Callable[[], list[Placed]],
    turn: Callable[[object, str], Message],
    system: str = "",
    tools: str | None = None,
) -> Example:
    """Return context, chosen and rejected of a row whose answers are text, a turn or a list of turns.

    `context` reads the turns before them; it is not asked where both answers are whole conversations, which begin with
    a system or user turn. `turn` reads one turn. Raises RowError.
    """
    fields = [columns.get(name, name) for name in ("chosen", "rejected")]
    sides = [answer_turns(row, field, name, turn) for field, name in zip(fields, ("chosen", "rejected"), strict=True)]
    if any(side[0][1].role == "assistant" for side in sides):
        before = context()
        sides = [[*before, *side] for side in sides]
    for field, side in zip(fields, sides, strict=True):
        if system and side[0][1].role != "system":
            side.insert(0, ("system", Message(role="system", content=system)))
        check_order(side, field)
    chosen, rejected = ([message for _, message in side] for side in sides)
    return split_pair(chosen, rejected, field=fields[1], tools=tools)


def answer_turns(
    row: Mapping[str, object], field: str, role: str, turn: Callable[[object, str], Message]
) -> list[Placed]:
    """Return an answer that is a text, a turn or a list of turns; raises RowError."""
    value = row.get(field)
    if isinstance(value, (list, tuple)) and value:
        return [(f"{field}[{i}]", turn(each, f"{field}[{i}]")) for i, each in enumerate(value)]
    if isinstance(value, dict):
        return [(field, turn(value, field))]
    return [(field, Message(role="assistant", content=text_of(row, field, role)))]


def split_pair(
    chosen: Sequence[Message], rejected: Sequence[Message], *, field: str, tools: str | None = None
) -> Example:
    """Split two conversations into their common context and two endings, each beginning with an answer.

    Raises RowError when they are equal, or differ before the first answer. `field` is where the second one stands.
    """
    if chosen == rejected:
        raise RowError(
            "equal_pair",
            field,
            "an answer other than the chosen one",
            chosen[-1].content,
            "remove the row, or set bad_rows: skip",
        )
    shortest = min(len(chosen), len(rejected))
    shared = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest - 1)
    while shared >= 0 and not chosen[shared].role == rejected[shared].role == "assistant":
        shared -= 1
    if shared < 0:
        raise RowError("different_prompts", field, "the same prompt as in the chosen conversation", rejected[0].content)
    endings = (tuple(chosen[shared:]), tuple(rejected[shared:]))
    return Example(context=tuple(chosen[:shared]), endings=endings, tools=tools)


def check_order(turns: Sequence[Placed], field: str) -> None:
    """Check: system only first, then user, then user or tool and assistant in turns, an answer at the end."""
    before = _check_roles(turns)
    if before != "assistant":
        raise RowError(
            "no_answer",
            field,
            "an answer of the assistant as the last turn",
            words(f"role {before}"),
            "remove the last turn",
        )


def _check_roles(turns: Sequence[Placed]) -> str:
    """Return the role of the last turn; raises RowError when roles are out of order."""
    before = "start"
    for place, message in turns:
        allowed = _AFTER[before]
        if message.role not in allowed:
            raise RowError(
                "wrong_role_order",
                place,
                f"role {' or '.join(allowed)} after {before}",
                words(f"role {message.role}"),
                "put the turns in order",
            )
        if message.role == "assistant" and not (message.content.strip() or message.tool_calls):
            raise RowError("empty_text", place, "an answer", message.content, "remove the row")
        before = message.role
    return before


_AFTER: dict[str, tuple[str, ...]] = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
