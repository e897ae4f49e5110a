"""Constrained answers are in the language that was asked for, however random the model is."""

import json
import re
from typing import Any

import jsonschema
import pytest

from luthier.core.errors import ConfigError, ModelError
from luthier.core.types import Sampling
from luthier.engines import guides
from luthier.engines.local import LocalEngine
from luthier.engines.shaping import Shaping

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["bug", "wish", "你好"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "kind", "count", "tags"],
    "additionalProperties": False,
}
WILD = Sampling(max_new_tokens=200, temperature=1.5, sampling_seed=1)


def id_of(engine: LocalEngine, text: str) -> int:
    (token,) = engine.tokenizer(text, add_special_tokens=False).input_ids
    return token


def answers(engine: LocalEngine, make: Any, n: int = 20) -> list[Any]:
    request = engine.submit([65, 66, 67], WILD, n, shaping=Shaping(guide=make))
    while not request.done:
        engine.step()
    assert request.error is None
    return list(request.answers)


def test_json_of_a_schema(engine: LocalEngine) -> None:
    make = guides.json_guide(engine.tokenizer, engine.num_tokens, SCHEMA, end_ids=engine.end_ids)
    found = answers(engine, make)
    assert [answer.finish_reason for answer in found] == ["stop"] * 20
    for answer in found:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert len({answer.text for answer in found}) > 10


def test_any_object(engine: LocalEngine) -> None:
    make = guides.json_guide(engine.tokenizer, engine.num_tokens, None, end_ids=engine.end_ids)
    whole = [answer for answer in answers(engine, make, 30) if answer.finish_reason == "stop"]
    assert whole
    assert all(isinstance(json.loads(answer.text), dict) for answer in whole)


def test_expressions_and_choices(engine: LocalEngine) -> None:
    about = engine.tokenizer, engine.num_tokens
    pattern = guides.regex_guide(*about, "(yes|no)[!?]{1,3}", end_ids=engine.end_ids)
    assert all(re.fullmatch("(yes|no)[!?]{1,3}", answer.text) for answer in answers(engine, pattern))
    texts = ["blue (dark)", "red*", "你好🙂"]
    choice = guides.choice_guide(*about, texts, end_ids=engine.end_ids)
    assert {answer.text for answer in answers(engine, choice)} == set(texts)
    lark = guides.grammar_guide(*about, 'start: "a" start | "b"', end_ids=engine.end_ids)
    found = [answer for answer in answers(engine, lark) if answer.finish_reason == "stop"]
    assert all(re.fullmatch("a*b", answer.text) for answer in found)


def test_the_end_is_allowed_where_the_language_may_end(engine: LocalEngine) -> None:
    guide = guides.regex_guide(engine.tokenizer, engine.num_tokens, "ab?", end_ids=engine.end_ids)()
    ends = sorted(engine.end_ids)
    for token, may_end in ((None, False), (id_of(engine, "a"), True), (id_of(engine, "b"), True)):
        if token is not None:
            guide.take(token)
        allowed = guide.allowed_V()
        assert allowed is not None
        assert len(allowed) == engine.num_tokens
        assert all(bool(allowed[end]) is may_end for end in ends)
    with pytest.raises(ModelError, match="constrained decoding"):
        guide.take(id_of(engine, "c"))


def test_guides_of_one_request_are_apart(engine: LocalEngine) -> None:
    make = guides.choice_guide(engine.tokenizer, engine.num_tokens, ["ab", "cd"], end_ids=engine.end_ids)
    first, second = make(), make()
    first.take(id_of(engine, "a"))
    assert bool(second.allowed_V()[id_of(engine, "c")])  # type: ignore[index]
    assert not bool(first.allowed_V()[id_of(engine, "c")])  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (guides.json_guide, {"type": "strin"}, "this JSON schema cannot be followed: .*strin"),
        (guides.regex_guide, "(a", "this regular expression cannot be followed: .*unclosed group"),
        (guides.grammar_guide, "start: nope", "this grammar cannot be followed: .*nope"),
        (guides.choice_guide, [], "a choice needs texts"),
    ],
)
def test_what_cannot_be_followed(make: Any, given: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tokenizer, 320, given)


@pytest.mark.slow
def test_smollm2_writes_json() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.models.load import resolve

    folder = resolve("smollm2-135m").base
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine = LocalEngine(model, AutoTokenizer.from_pretrained(folder))
    make = guides.json_guide(engine.tokenizer, engine.num_tokens, SCHEMA, end_ids=engine.end_ids)
    prompt = engine.tokenizer("A bug report named crash as JSON:\n").input_ids
    request = engine.submit(prompt, Sampling(max_new_tokens=80), shaping=Shaping(guide=make))
    while not request.done:
        engine.step()
    answer = request.answers[0]
    assert answer is not None
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), SCHEMA)
