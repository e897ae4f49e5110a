"""Data sets of conversations: one shape of turns, and questions made of several columns."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.log import printable, say_once
from luthier.core.registry import did_you_mean
from luthier.facade.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYSTEM, USER, ASSISTANT = ("system",), ("user", "human", "input"), ("gpt", "assistant", "output")
_COLUMN = "conversations"
_PROBED = 10
"""Rows from which the names of the two fields are guessed."""
_SLOT = re.compile(r"\{([^{}]+)\}")
_OPTIONAL = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


# ---- one shape of turns


def standardize_data_formats(
    dataset: Any,
    tokenizer: Any = None,
    aliases_for_system: Sequence[str] = SYSTEM,
    aliases_for_user: Sequence[str] = USER,
    aliases_for_assistant: Sequence[str] = ASSISTANT,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Any:
    """Return the dataset with turns of `role` and `content` in its column `conversations`.

    Which of two fields is the role is guessed from the first rows: it has fewer different values. A dataset without
    that column comes back as it is. Raises TypeError for a role that has no alias, DataError for turns that have not
    two fields.
    """
    if _COLUMN not in (dataset.column_names or ()):
        say_once(f"no column {_COLUMN}: the dataset stays as it is")
        return dataset
    role, content = _fields([row[_COLUMN] for _, row in zip(range(_PROBED), dataset, strict=False)])
    names = {"system": aliases_for_system, "user": aliases_for_user, "assistant": aliases_for_assistant}
    aliases = {alias: name for name, more in names.items() for alias in more}
    options: dict[str, Any] = (
        {"desc": "Giving turns one shape", "num_proc": num_proc} if hasattr(dataset, "__len__") else {}
    )
    standardize = _Standardize(role, content, aliases)
    return dataset.map(standardize, batched=True, batch_size=batch_size, remove_columns=[_COLUMN], **options)


standardize_sharegpt = standardize_data_formats


class _Standardize:
    """Renames the fields and roles of a batch of conversations."""

    def __init__(self, role: str, content: str, aliases: Mapping[str, str]) -> None:
        self.role, self.content, self.aliases = role, content, aliases

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[list[dict[str, str]]]]:
        return {_COLUMN: [[self._turn(turn) for turn in row] for row in rows[_COLUMN]]}

    def _turn(self, turn: Mapping[str, str]) -> dict[str, str]:
        role = turn[self.role]
        if role not in self.aliases:
            near = did_you_mean(str(role), list(self.aliases))
            raise TypeError(
                f"a turn has the role {printable(role)}, which is none of {', '.join(self.aliases)}{near}; name it in "
                "aliases_for_system, aliases_for_user or aliases_for_assistant"
            )
        return {"role": self.aliases[role], "content": turn[self.content]}


def _fields(conversations: Sequence[Sequence[Mapping[str, str]]]) -> tuple[str, str]:
    values: dict[str, set[str]] = {}
    for conversation in conversations:
        for turn in conversation:
            for field, value in turn.items():
                values.setdefault(field, set()).add(value)
    if set(values) == {"role", "content"}:
        return "role", "content"
    if len(values) != 2:
        raise DataError(
            f"turns in {_COLUMN} have the fields {', '.join(values) or 'none'}; expected two, a role and a text",
            code="data_bad_row",
        )
    role, content = sorted(values, key=lambda field: len(values[field]))
    return role, content


# ---- questions of several columns


def to_sharegpt(
    dataset: Any,
    merged_prompt: str = "",
    merged_column_name: str = "instruction",
    output_column_name: str = "output",
    remove_unused_columns: bool = True,
    conversation_extension: int = 1,
    random_state: int = 3407,
) -> Any:
    """Return conversations of `from` and `value`, with a question made of columns and the answer in another one.

    `merged_prompt`: a text in which {column} stands for the column's value; a part in [[double brackets]] vanishes
    where the first column in it is empty; without it the question is `merged_column_name`. `conversation_extension`:
    each row becomes a conversation of as many, the others drawn by `random_state`.

    Raises ArgumentError for a column that is not there, naming the nearest.
    """
    columns = dataset.column_names
    prompt = merged_prompt or f"{{{merged_column_name}}}"
    wanted = [*_SLOT.findall(_OPTIONAL.sub(r"\1", prompt)), output_column_name]
    if not wanted[1:]:
        raise ArgumentError(f"merged_prompt {printable(prompt)} names no column; write {{column}}")
    if conversation_extension < 1:
        raise ArgumentError(f"conversation_extension is {conversation_extension}; it is a number of rows, 1 or more")
    for column in wanted:
        if column not in columns:
            near = did_you_mean(column, columns)
            raise ArgumentError(f"there is no column {printable(column)}{near}; there are: {', '.join(columns)}")
    removed = {"remove_columns": columns} if remove_unused_columns else {}
    made = dataset.map(_Conversations(prompt, output_column_name), batched=True, desc="Making conversations", **removed)
    return _extended(made, conversation_extension, random_state)


class _Conversations:
    """Makes a conversation of one turn of each row of a batch."""

    def __init__(self, prompt: str, answer: str) -> None:
        self.prompt, self.answer = prompt, answer

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        keys = list(rows)
        each = (dict(zip(keys, values, strict=True)) for values in zip(*rows.values(), strict=True))
        return {_COLUMN: [self._row(row) for row in each]}

    def _row(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        question = fill(self.prompt, row)
        return [{"from": "human", "value": question}, {"from": "gpt", "value": _text(row[self.answer])}]


def fill(prompt: str, row: Mapping[str, Any]) -> str:
    """Return `prompt` with the values of a row.

    >>> fill("{a}[[ and {b}]]", {"a": "one", "b": None}), fill("{a}[[ and {b}]]", {"a": "one", "b": "two"})
    ('one', 'one and two')
    """
    parts = _OPTIONAL.split(prompt)
    kept = [part for i, part in enumerate(parts) if i % 2 == 0 or _is_there(part, row)]
    # Filled in one pass: braces in a value stay what they are.
    return _SLOT.sub(lambda slot: _text(row[slot[1]]), "".join(kept))


def _is_there(part: str, row: Mapping[str, Any]) -> bool:
    first = _SLOT.search(part)
    return first is None or _text(row[first[1]]) != ""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _extended(dataset: Any, count: int, seed: int) -> Any:
    """Return the dataset with `count` conversations in each: its own one and drawn ones behind it."""
    if count == 1:
        return dataset
    rest = [list(range(len(dataset))) for _ in range(count - 1)]
    draw = random.Random(seed)
    for order in rest:
        draw.shuffle(order)
    rows = dataset[_COLUMN][:]

    def extend(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {_COLUMN: [turn for each in (number, *(order[number] for order in rest)) for turn in rows[each]]}

    return dataset.map(extend, with_indices=True, desc="Extending conversations")
