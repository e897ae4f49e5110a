"""Thoughts, calls and tools in rows of every format."""

import json

import pytest

from luthier.core.findings import RowError
from luthier.core.registry import FORMATS, PAIR_FORMATS
from luthier.core.types import Message
from luthier.data.turns import split_thought

TOOLS = [{"name": "weather", "description": "für Städte"}]
CALL = {"name": "weather", "arguments": {"city": "苏州"}}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_openai_messages_with_thoughts(field) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", field: "Hm"}]
    (answer,) = FORMATS.get("openai")({"messages": turns}, {}, {}).endings[0]
    assert answer == Message(role="assistant", content="a", reasoning="Hm")
    turns[1][field] = 3
    with pytest.raises(RowError, match=rf"\[{field}\] expected text, found the number '3'"):
        FORMATS.get("openai")({"messages": turns}, {}, {})


def test_openai_thoughts_of_users_are_no_thoughts() -> None:
    turns = [{"role": "user", "content": "q", "reasoning_content": "x"}, {"role": "assistant", "content": "a"}]
    assert FORMATS.get("openai")({"messages": turns}, {}, {}).context[0].reasoning == ""


def test_sharegpt_turns_with_thoughts_and_calls() -> None:
    called = f"<think>\nHm\n</think>\n\n{json.dumps(CALL)}"
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": called},
            {"from": "observation", "value": "21"},
            {"from": "gpt", "value": "a", "reasoning_content": "So"},
        ],
        "tools": json.dumps(TOOLS),
    }
    example = FORMATS.get("sharegpt")(row, {}, {})
    assert example.context[1:] == (
        Message(role="assistant", content="", tool_calls=(CALL,), reasoning="Hm"),
        Message(role="tool", content="21"),
    )
    assert example.endings[0][0].reasoning == "So"
    assert example.tools == row["tools"]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS, ensure_ascii=False)])
def test_alpaca_rows_with_tools(tools) -> None:
    expected = json.dumps(TOOLS, ensure_ascii=False)
    assert FORMATS.get("alpaca")({"instruction": "q", "output": "a", "tools": tools}, {}, {}).tools == expected
    pair = {"instruction": "q", "chosen": "a", "rejected": "b", "described": tools}
    assert PAIR_FORMATS.get("alpaca")(pair, {"tools": "described"}, {}).tools == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nHm\n</think>\n\nYes", ("Hm", "Yes")),
        ("<think></think>Yes", ("", "Yes")),
        ("Yes", ("", "Yes")),
        ("Yes </think> no", ("", "Yes </think> no")),
        ("Write <think>x</think>", ("", "Write <think>x</think>")),
    ],
)
def test_thought_at_the_beginning(text, expected) -> None:
    assert split_thought(text) == expected
