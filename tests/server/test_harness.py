"""lm-eval's client for completions, which reads echo and logprobs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from serving import Running


@pytest.mark.slow
def test_log_likelihoods_are_those_of_the_engine(live: Running, tokenizer: Any) -> None:
    api = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI
    engine = live.service.voices["tiny"].served.engine
    pairs = [("The tea is", " hot"), ("Kö", " 🙂?"), ("one two", " three four")]
    greedy = engine.generate([tokenizer("The tea is")["input_ids"]], live.service.voices["tiny"].how)[0][0]
    tokens = [tokenizer(context + continuation)["input_ids"] for context, continuation in pairs]
    starts = [len(tokenizer(context)["input_ids"]) for context, _ in pairs]
    tokens.append([*tokenizer("The tea is")["input_ids"], *greedy.tokens[:3]])
    starts.append(len(tokens[-1]) - 3)
    # What it sends and how it reads, without its own way of sending.
    reply = live.post("/v1/completions", api._create_payload(SimpleNamespace(model="tiny"), tokens))
    found = api.parse_logprobs(reply.json(), ctxlens=starts)
    assert [each for _, each in found].count(True) >= 1
    for ids, first, (total, is_greedy) in zip(tokens, starts, found, strict=True):
        scores = engine.score([ids], top=1)[0][first:]
        assert total == pytest.approx(sum(each.logp for each in scores), abs=1e-4)
        assert is_greedy == all(each.token == each.top[0][0] for each in scores)
