"""POST /v1/chat/completions through the official client."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import Running, until

ASKED: Any = [{"role": "user", "content": "Kö 🙂?"}]
NO_END = {"258": -100}
"""Keeps the model from ending its answer."""


def ask(client: OpenAI, **more: Any) -> ChatCompletion:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, "max_tokens": 10, **more})


def stream(client: OpenAI, **more: Any) -> list[ChatCompletionChunk]:
    return list(
        client.chat.completions.create(**{"model": "tiny", "messages": ASKED, "max_tokens": 10, "stream": True, **more})
    )


@pytest.mark.parametrize("more", [{}, {"temperature": 1, "seed": 4}, {"temperature": 1, "seed": 4, "n": 3}])
def test_an_answer_and_its_stream_are_the_same(client: OpenAI, more: dict[str, Any]) -> None:
    whole = ask(client, **more)
    chunks = stream(client, stream_options={"include_usage": True}, **more)
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]


def test_usage_is_exact(client: OpenAI, tokenizer: Any, live: Running) -> None:
    found = ask(client, n=2, logit_bias=NO_END, temperature=1)
    prompt = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == 20
    assert found.usage.total_tokens == len(prompt) + 20
    stopped = ask(client, logit_bias={"65": 100}, stop="b" * 3)
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens == 3 or stopped.choices[0].finish_reason == "length"


def test_every_field_is_there(live: Running) -> None:
    body = live.post("/v1/chat/completions", {"model": "tiny", "messages": ASKED, "max_tokens": 3}).json()
    assert set(body) >= {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    (choice,) = body["choices"]
    assert choice["logprobs"] is None
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert {"role", "content", "refusal", "tool_calls"} <= set(choice["message"])


def test_greedy_answers_repeat_and_seeds_decide(client: OpenAI) -> None:
    assert ask(client).choices[0].message.content == ask(client, temperature=0).choices[0].message.content
    drawn = {"temperature": 1.5, "max_tokens": 16, "logit_bias": NO_END}
    first, again = (ask(client, seed=7, n=3, **drawn) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert ask(client, seed=8, **drawn).choices[0].message.content != texts[0]
    assert ask(client, seed=7, **drawn).choices[0].message.content == texts[0], "the seed of an answer, however many"


def test_stop_texts_are_cut_and_nothing_of_them_is_told(client: OpenAI) -> None:
    whole = ask(client, max_tokens=12, logit_bias=NO_END).choices[0].message.content
    assert whole is not None
    stop = next(
        whole[i : i + 2] for i in range(2, 10) if whole.index(whole[i : i + 2]) == i and whole[i : i + 2].isascii()
    )
    for given in (stop, ["never there", stop]):
        cut = ask(client, max_tokens=12, logit_bias=NO_END, stop=given).choices[0]
        assert cut.message.content == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"
    parts = stream(client, max_tokens=12, logit_bias=NO_END, stop=stop)
    assert "".join(c.choices[0].delta.content or "" for c in parts) == whole[: whole.index(stop)]
    assert ask(client, max_tokens=12, logit_bias=NO_END).choices[0].finish_reason == "length"


def test_log_probabilities(client: OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=4, logit_bias=NO_END).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert len(content) == 10
    for token in content:
        assert len(token.top_logprobs) == 4
        best = [each.logprob for each in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert token.logprob <= best[0] + 1e-6
        assert sum(map(math.exp, best)) <= 1 + 1e-6
        assert bytes(token.bytes or []).decode(errors="replace") == token.token
    said = b"".join(bytes(token.bytes or []) for token in content).decode(errors="replace")
    assert said == choice.message.content
    plain = ask(client, logprobs=True, logit_bias=NO_END).choices[0].logprobs
    assert plain is not None
    assert plain.content is not None
    assert [(t.token, t.top_logprobs) for t in plain.content] == [(t.token, []) for t in content]
    parts = stream(client, logprobs=True, top_logprobs=4, logit_bias=NO_END)
    told = [t for c in parts if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content or []]
    assert told == content
    assert parts[-1].choices[0].finish_reason == "length"


def test_biases_and_penalties_change_the_answer(client: OpenAI, tokenizer: Any) -> None:
    (letter,) = tokenizer("x")["input_ids"]
    assert ask(client, logit_bias={str(letter): 100}).choices[0].message.content == "x" * 10
    torn = ask(client, logit_bias={str(letter): 3}, frequency_penalty=2, presence_penalty=2).choices[0].message.content
    assert torn != ask(client, logit_bias={str(letter): 3}).choices[0].message.content or "x" not in torn
    much = ask(client, logit_bias={str(letter): 100}, presence_penalty=-2).choices[0].message.content
    assert much == "x" * 10


def test_both_names_of_the_limit(client: OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        found = client.chat.completions.create(model="tiny", messages=ASKED, logit_bias={258: -100}, **{name: 4})
        assert found.usage is not None
        assert found.usage.completion_tokens == 4
    with pytest.raises(BadRequestError) as refused:
        ask(client, max_tokens=3, max_completion_tokens=4)
    assert refused.value.param == "max_tokens"


def test_raw_and_streaming_replies(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=ASKED, max_tokens=3)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices[0].message.role == "assistant"
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=ASKED, max_tokens=3, stream=True
    ) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    whole = ask(client, logit_bias=NO_END).choices[0].message.content or ""
    with client.chat.completions.stream(
        model="tiny", messages=ASKED, max_tokens=10, stop=whole[-1], logit_bias={"258": -100}
    ) as events:
        text = "".join(event.delta for event in events if event.type == "content.delta")
        assert text == events.get_final_completion().choices[0].message.content == whole[: whole.index(whole[-1])]


def test_the_request_keeps_its_id_and_ignored_fields_are_named(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=ASKED,
        max_tokens=3,
        extra_headers={"x-request-id": "mine-1"},
        extra_body={"mirostat": 2, "stream_options": None, "metadata": {"a": "b"}},
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-ignored-fields"] == "mirostat"
    odd = {"": 1, "a, b": 1, "\r\nx-evil: 1": 1, "\u00e9 ": 1}
    named = client.models._client.post("/chat/completions", body={"model": "tiny", "messages": ASKED, "max_tokens": 1, **odd},
                                       cast_to=httpx.Response)  # fmt: skip
    assert named.headers["x-ignored-fields"] == "?, a??b, ??x-evil??1, ??"
    forged = client.models.with_raw_response.list(extra_headers={"x-request-id": "a b<script>"})
    assert forged.headers["x-request-id"].startswith("req_")


def test_breaking_out_of_a_stream_frees_its_place(client: OpenAI, live: Running) -> None:
    pieces = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=400, stream=True, logit_bias={258: -100}
    )
    next(iter(pieces))
    pieces.close()
    until(lambda: live.service.taken == 0 and live.service.voices["tiny"].pump.running == 0)


def test_many_at_once_each_get_their_own_answer(live: Running, client: OpenAI) -> None:
    texts = [f"say {number}" for number in range(24)]
    alone = [ask(client, messages=[{"role": "user", "content": text}]).choices[0].message.content for text in texts]

    async def together() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as asking:
            found = await asyncio.gather(
                *(
                    asking.chat.completions.create(
                        model="tiny", messages=[{"role": "user", "content": text}], max_tokens=10
                    )
                    for text in texts
                )
            )
        return [each.choices[0].message.content for each in found]

    assert asyncio.run(together()) == alone


def test_the_asynchronous_client_streams(live: Running, client: OpenAI) -> None:
    async def told() -> str:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as asking:
            pieces = await asking.chat.completions.create(model="tiny", messages=ASKED, max_tokens=10, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in pieces])

    assert asyncio.run(told()) == ask(client).choices[0].message.content


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "hot"}),
        ("top_p", {"top_p": 1.5}),
        ("n", {"n": 0}),
        ("n", {"n": 128}),
        ("stop", {"stop": ["x"] * 17}),
        ("top_logprobs", {"top_logprobs": 21, "logprobs": True}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("logit_bias", {"logit_bias": {"-1": 1}}),
        ("logit_bias", {"logit_bias": {"99999": 1}}),
        ("logit_bias", {"logit_bias": {"1": 200}}),
        ("max_tokens", {"max_tokens": 0}),
        ("messages", {"messages": []}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        ("messages", {"messages": [{"role": "user", "content": "x" * 1000}]}),
        ("messages", {"max_tokens": 4000}),
        ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
        ("functions", {"functions": [{"name": "f", "parameters": {}}]}),
        ("store", {"store": True}),
        ("reasoning_effort", {"reasoning_effort": "low"}),
        ("chat_template_kwargs", {"extra_body": {"chat_template_kwargs": {"tokenize": False}}}),
        ("chat_template_kwargs", {"extra_body": {"chat_template_kwargs": {"messages": []}}}),
    ],
)
def test_what_is_refused_is_named(client: OpenAI, field: str, more: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask(client, **more)
    assert refused.value.param is not None
    assert refused.value.param.split(".1")[0].split(".-1")[0] in (field, f"{field}.99999"), refused.value.param
    assert refused.value.type == "invalid_request_error"


def test_an_overflow_says_both_numbers(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        ask(client, messages=[{"role": "user", "content": "x" * 600}])
    assert refused.value.code == "context_length_exceeded"
    assert "512" in refused.value.message
    assert "6" in refused.value.message


def test_control_tokens_in_a_message_are_text(client: OpenAI, tokenizer: Any) -> None:
    plain = ask(client, messages=[{"role": "user", "content": "a<|im_end|>b"}])
    assert plain.usage is not None
    assert plain.usage.prompt_tokens > len(tokenizer("a<|im_end|>b")["input_ids"]) + 20
