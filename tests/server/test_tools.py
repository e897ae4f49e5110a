"""Tools and formats through the official client, on a model whose template knows tools and thoughts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chats import tokenizer_for
from helpers import make_folder
from openai import BadRequestError, OpenAI
from pydantic import BaseModel
from serving import Running, plan_of, running

ASKED = [{"role": "user", "content": "Kö 🙂?"}]
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "sure": {"type": "boolean"}},
    "required": ["size", "sure"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
    for name in ("pick", "order")
]


class Choice(BaseModel):
    """What an answer is parsed into."""

    sure: bool


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = make_folder("llama", tmp_path_factory.mktemp("able"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    tokenizer_for("qwen").save_pretrained(folder)
    with running(plan_of(folder)) as found:
        yield found


def ask(able: Running, **more: Any) -> Any:
    asked = {"model": "tiny", "messages": ASKED, "temperature": 1, "seed": 3, "max_tokens": 300, **more}
    return able.client().chat.completions.create(**asked)


def check(arguments: str) -> None:
    found = json.loads(arguments)
    assert set(found) == {"size", "sure"}
    assert found["size"] in ("small", "large")
    assert isinstance(found["sure"], bool)


def test_a_required_call_follows_its_schema(able: Running) -> None:
    for seed in range(4):
        choice = ask(able, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert call.function.name in ("pick", "order")
        assert call.id.startswith("call_")
        check(call.function.arguments)


def test_a_named_call_streams(able: Running) -> None:
    named = {"type": "function", "function": {"name": "order"}}
    with able.client().chat.completions.stream(
        model="tiny", messages=ASKED, tools=TOOLS, tool_choice=named, temperature=1, seed=5, max_tokens=300
    ) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_completion()
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "order"
    assert whole.choices[0].finish_reason == "tool_calls"
    check(call.function.arguments)
    assert "tool_calls.function.arguments.done" in kinds


def test_a_full_round_of_a_tool(able: Running) -> None:
    call = ask(able, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    messages = [*ASKED, call.model_dump(), {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "done"}]
    answer = ask(able, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=5)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content is not None
    offered = ask(able, messages=messages, tools=TOOLS, max_tokens=5)
    assert offered.usage.prompt_tokens > answer.usage.prompt_tokens + 100, "tools that may be called are described"


def test_answers_follow_a_schema(able: Running) -> None:
    given = {"type": "json_schema", "json_schema": {"name": "choice", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        check(ask(able, response_format=given, seed=seed).choices[0].message.content)
    parsed = able.client().chat.completions.parse(
        model="tiny", messages=ASKED, response_format=Choice, temperature=1, seed=1, max_tokens=100
    )
    assert isinstance(parsed.choices[0].message.parsed, Choice)
    plain = ask(able, response_format={"type": "json_object"}, max_tokens=3, logit_bias={"123": 50})
    assert plain.choices[0].message.content.startswith("{")


def test_text_is_a_format_too(client: OpenAI) -> None:
    asked = {"model": "tiny", "messages": ASKED, "max_tokens": 5}
    plain = client.chat.completions.create(**asked)
    typed = client.chat.completions.create(**asked, response_format={"type": "text"})
    assert plain.choices[0].message == typed.choices[0].message


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}),
        ("tools[1].function.name", {"tools": [TOOLS[0], TOOLS[0]]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tools[0].type", {"tools": [{"type": "retrieval"}]}),
        ("tools", {"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"type": "nothing"}}}]}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": 5}}}}),
        ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        ("response_format.type", {"response_format": {"type": "xml"}}),
        ("response_format", {"response_format": {"type": "json_object"}, "tools": TOOLS}),
        ("messages[1].tool_call_id", {"messages": [*ASKED, {"role": "tool", "tool_call_id": "x", "content": "y"}]}),
        ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://x"}}]}]}),
        ("messages[0].role", {"messages": [{"role": "wizard", "content": "x"}]}),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(able: Running, field: str, more: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask(able, **more)
    assert refused.value.param == field


def test_a_template_without_tools_refuses_them(tmp_path: Path, live: Running) -> None:
    with pytest.raises(BadRequestError) as refused:
        live.client().chat.completions.create(model="tiny", messages=ASKED, tools=TOOLS)
    assert refused.value.param == "tools"
