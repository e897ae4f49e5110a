"""POST /v1/completions through the official client."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from serving import Running

PROMPT = "Kö 🙂?"


def test_text_and_ids_are_one_prompt(client: OpenAI, tokenizer: Any) -> None:
    ids = tokenizer(PROMPT)["input_ids"]
    asked = [PROMPT, [PROMPT, "tea"], ids, [ids, tokenizer("tea")["input_ids"]]]
    found = [client.completions.create(model="tiny", prompt=p, max_tokens=6) for p in asked]
    assert len({each.choices[0].text for each in found}) == 1
    assert found[1].choices[1].text == found[3].choices[1].text
    assert [len(each.choices) for each in found] == [1, 2, 1, 2]
    assert found[0].usage.prompt_tokens == len(ids)
    assert found[1].usage.prompt_tokens == len(ids) + 3
    assert found[0].usage.completion_tokens == 6


def test_echo_scores_the_prompt(client: OpenAI, live: Running, tokenizer: Any) -> None:
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2, echo=True, logprobs=3)
    choice = whole.choices[0]
    ids = tokenizer(PROMPT)["input_ids"]
    assert choice.text.startswith(PROMPT)
    scores = choice.logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(ids) + 2
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    alone = live.service.voices["tiny"].served.engine.score([ids])[0]
    assert scores.token_logprobs[1 : len(ids)] == pytest.approx([each.logp for each in alone[1:]], abs=1e-5)
    only = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True, logprobs=3).choices[0]
    assert only.text == PROMPT
    assert only.finish_reason == "length"
    assert only.logprobs.token_logprobs == scores.token_logprobs[: len(ids)]


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"echo": True, "logprobs": 2}, {"logprobs": 0}, {"n": 2}])
def test_a_stream_is_the_whole_in_parts(client: OpenAI, more: dict[str, Any]) -> None:
    asked = {"model": "tiny", "prompt": [PROMPT, "tea"], "max_tokens": 7, **more}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(each.text for each in mine) == choice.text
        assert [each.finish_reason for each in mine if each.finish_reason] == [choice.finish_reason]
        for name in ("tokens", "text_offset"):
            parts = [getattr(each.logprobs, name) for each in mine if each.logprobs is not None]
            assert functools.reduce(operator.iadd, parts, []) == (
                getattr(choice.logprobs, name) if choice.logprobs else []
            )


def test_a_stream_of_scores_alone(client: OpenAI) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1}
    found = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert [chunk.choices[0].text for chunk in found[:-1]] == [PROMPT]
    assert found[0].choices[0].finish_reason == "length"
    assert found[-1].usage == client.completions.create(**asked).usage


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": [-1]}),
        ("prompt[1]", {"prompt": [[1], [4096]]}),
        ("prompt", {"prompt": []}),
        ("suffix", {"suffix": "end"}),
        ("best_of", {"best_of": 3}),
        ("logprobs", {"logprobs": 21}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -1}),
        ("prompt", {"max_tokens": 4000}),
        ("logit_bias", {"logit_bias": {"320": 1}}),
    ],
)
def test_what_is_refused_is_named(client: OpenAI, field: str, asked: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(**{"model": "tiny", "prompt": "x", **asked})
    assert refused.value.param is not None
    assert refused.value.param.startswith(field)
