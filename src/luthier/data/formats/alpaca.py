"""Alpaca rows: instruction, input, output (or chosen and rejected), with optional system text and history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.findings import RowError
from luthier.core.registry import FORMATS, PAIR_FORMATS, PROMPT_FORMATS
from luthier.core.types import Example, Message
from luthier.data.turns import split_pair, text_of, tools_column, with_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "chosen": "chosen",
    "rejected": "rejected",
    "history": "history",
    "system": "system",
}


@FORMATS.register("alpaca")
def alpaca(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Join instruction and input by a newline; history pairs come first."""
    name = {**COLUMNS, **columns}
    context = _context(row, name)
    answer = Message(role="assistant", content=text_of(row, name["response"], "response"))
    return Example(context=tuple(context), endings=((answer,),), tools=tools_column(row, columns))


@PAIR_FORMATS.register("alpaca")
def alpaca_pair(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read the same prompt with two answers, each a text."""
    name = {**COLUMNS, **columns}
    context = _context(row, name)
    chosen, rejected = (
        Message(role="assistant", content=text_of(row, name[which], which)) for which in ("chosen", "rejected")
    )
    tools = tools_column(row, columns)
    return split_pair([*context, chosen], [*context, rejected], field=name["rejected"], tools=tools)


@PROMPT_FORMATS.register("alpaca")
def alpaca_prompt(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Read the prompt alone; an output is kept as the column "answer"."""
    name = {**COLUMNS, **columns}
    extra = with_answer(row, row.get(name["response"]))
    return Example(context=tuple(_context(row, name)), tools=tools_column(row, columns), extra=extra)


def _context(row: Mapping[str, object], name: Mapping[str, str]) -> list[Message]:
    messages: list[Message] = []
    system = text_of(row, name["system"], "system", required=False)
    if system:
        messages.append(Message(role="system", content=system))
    for number, pair in enumerate(_history(row, name["history"])):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise RowError("wrong_type", f"{name['history']}[{number}]", "a pair [question, answer] of texts", pair)
        messages += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
    query = text_of(row, name["query"], "query", required=False)
    prompt = text_of(row, name["prompt"], "prompt", required=not query)
    messages.append(Message(role="user", content="\n".join(part for part in (prompt, query) if part)))
    return messages


def _history(row: Mapping[str, object], column: str) -> list[object]:
    history = row.get(column) or []
    if not isinstance(history, (list, tuple)):
        raise RowError("wrong_type", column, "a list of [question, answer] pairs", history)
    return list(history)
