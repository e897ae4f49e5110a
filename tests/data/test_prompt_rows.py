"""Rows as prompts: what is asked, and every column for whoever grades the answers."""

from pathlib import Path
from typing import Any

import pytest

from luthier.core.findings import RowError
from luthier.core.types import Message
from luthier.data.rows import check_kind, read_example
from luthier.data.sources import Source

USER = Message(role="user", content="2 + 2?")
SYSTEM = Message(role="system", content="Count.")
TURNS = [{"role": "system", "content": "Count."}, {"role": "user", "content": "2 + 2?"}]
GPT = [{"from": "human", "value": "2 + 2?"}]
SAID = {"role": "assistant", "content": "4"}


def source(**more: Any) -> Source:
    return Source(name="rows", **more)


ROWS = {
    "alpaca": ({"instruction": "2 + 2?"}, (USER,), None),
    "alpaca with output": ({"instruction": "2 +", "input": "2?", "output": "4"},
                           (Message(role="user", content="2 +\n2?"),), "4"),
    "alpaca with empty output": ({"instruction": "2 + 2?", "output": ""}, (USER,), None),
    "alpaca with a number": ({"instruction": "2 + 2?", "output": 4}, (USER,), 4),
    "alpaca with both": ({"instruction": "2 + 2?", "output": "It is 4.", "answer": "4"}, (USER,), "4"),
    "alpaca with a system text": ({"instruction": "2 + 2?", "system": "Count.", "answer": 4}, (SYSTEM, USER), 4),
    "sharegpt": ({"conversations": GPT, "system": "Count."}, (SYSTEM, USER), None),
    "sharegpt with an answer": ({"conversations": [*GPT, {"from": "gpt", "value": "4"}]}, (USER,), "4"),
    "openai": ({"messages": TURNS}, (SYSTEM, USER), None),
    "openai with an answer": ({"messages": [*TURNS, SAID]}, (SYSTEM, USER), "4"),
    "text": ({"prompt": "2 + 2?", "solution": "4"}, (USER,), None),
    "messages": ({"prompt": TURNS, "answer": "4"}, (SYSTEM, USER), "4"),
    "answered messages": ({"prompt": [*TURNS, SAID]}, (SYSTEM, USER), "4"),
    "completion": ({"prompt": "2 + 2?", "completion": "4"}, (USER,), "4"),
    "completion of messages": ({"prompt": TURNS, "completion": [SAID]}, (SYSTEM, USER), "4"),
    "pair": ({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, (USER,), None),
    "tagged": ({"instruction": "2 + 2?", "output": "5", "kto_tag": False}, (USER,), "5"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_each_spelling(name: str) -> None:
    row, context, answer = ROWS[name]
    example = read_example(row, source(), "prompt")
    assert (example.context, example.endings, example.text) == (context, (), None)
    assert {key: example.extra[key] for key in row} == row
    assert example.extra.get("answer") == answer
    assert example.extra.keys() <= {*row, "answer"}


def test_conversations_go_on() -> None:
    """Earlier answers are context; only the last one is dropped."""
    turns = [*TURNS, SAID, {"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}]
    example = read_example({"messages": turns}, source(), "prompt")
    assert [m.content for m in example.context] == ["Count.", "2 + 2?", "4", "3 + 3?"]
    assert example.extra["answer"] == "6"


def test_mapped_columns() -> None:
    row = {"problem": "2 + 2?", "solution": "4"}
    example = read_example(row, source(columns={"prompt": "problem", "response": "solution"}), "prompt")
    assert (example.context, example.extra["answer"]) == ((USER,), "4")
    named = source(formatting="openai", columns={"prompt": "problem", "completion": "solution"})
    assert read_example(row, named, "prompt").extra["answer"] == "4"


def test_tools_are_kept() -> None:
    row = {"messages": TURNS, "tools": [{"name": "add"}]}
    assert read_example(row, source(), "prompt").tools == '[{"name": "add"}]'


BAD_ROWS = {
    "nothing": ({"x": 1}, "[instruction] expected a column of this name, found columns x; map it: columns: {prompt: <your column>}"),
    "empty": ({"prompt": " "}, "[prompt] expected text, found empty text; remove the row, or set bad_rows: skip"),
    "null": ({"instruction": None}, "[instruction] expected text, found null; remove the row, or set bad_rows: skip"),
    "no list": ({"messages": "hello"}, "[messages] expected a list of messages, found text 'hello'"),
    "system only": ({"messages": TURNS[:1]}, "[messages] expected a question as the last turn, found role system; add it, or take the row out"),
    "answer only": ({"messages": [SAID]}, "[messages[0]] expected role system or user after start, found role assistant; put the turns in order"),
    "two questions": ({"messages": [TURNS[1], TURNS[1]]}, "[messages[1]] expected role assistant after user, found role user; put the turns in order"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_each_bad_row_has_its_sentence(name: str) -> None:
    row, message = BAD_ROWS[name]
    with pytest.raises(RowError) as caught:
        read_example(row, source(), "prompt")
    assert str(caught.value) == message


def test_rows_of_every_kind_hold_prompts(tmp_path: Path) -> None:
    for number, row in enumerate(
        ('{"instruction": "a", "chosen": "b", "rejected": "c"}', '{"prompt": "a", "label": true}')
    ):
        (tmp_path / f"{number}.jsonl").write_text(row)
        check_kind([source(path=tmp_path / f"{number}.jsonl")], "prompt")
