"""Properties of every reward on the shelf."""

import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from luthier.config.rollout import NamedPart
from luthier.core.errors import ConfigError
from luthier.core.registry import REWARDS
from luthier.core.types import Answer, Completion, Example, Message
from luthier.rewards.build import build_rewards, check_columns

SETTINGS: dict[str, dict[str, Any]] = {
    "format": {"tags": ["think", "answer"]},
    "json_schema": {"schema": {"type": "object"}},
    "judge": {"base_url": "http://127.0.0.1:9/v1", "model": "m"},
    "length": {"target_tokens": 8},
    "python_code": {"allow_execution": True},
    "regex": {"pattern": r"(\d+)", "column": "answer"},
    "scores": {"url": "http://127.0.0.1:9/score"},
    "soft_overlong": {"max_tokens": 16, "cache_tokens": 8},
}
"""Settings of rewards that need some."""
COLUMNS: dict[str, dict[str, object]] = {
    "python_code": {"tests": ["assert f(1) == 2"]},
    "reasoning_gym": {"task": "chain_sum", "entry": {"question": "3 + 4", "answer": "7", "metadata": {}}},
}
"""Columns of rewards that read another than "answer"."""
TEXTS = {
    "empty": "",
    "blank": " \n\t",
    "long": "a" * 100_000,
    "digits": "9" * 100_000,
    "emoji": "👩‍👩‍👧 \u202e é 七 \ufffd",
    "nul": "\0" * 50,
    "surrogate": "\ud800",
    "opening": "([{<" * 2000,
    "closing": ")]}>" * 2000,
    "boxes": "\\boxed{" * 2000,
    "fences": "```\n" * 5001,
    "tags": "<think></answer>" * 2000,
    "right": "<think>3 + 4</think><answer>7</answer>",
}
NAMES = REWARDS.names()


def built(name: str) -> Any:
    (named,) = build_rewards([NamedPart(name=name, settings=SETTINGS.get(name, {}))])
    return named.reward


def answer(name: str, text: str) -> Answer:
    example = Example(
        context=(Message(role="user", content="3 + 4?"),), extra=COLUMNS.get(name, {"answer": "7"}), origin="rows:1"
    )
    return Answer(example=example, completion=Completion(prompt_tokens=(1,), tokens=tuple(range(5)), text=text))


def grade(reward: Any, name: str, text: str) -> float | None:
    return reward.many([answer(name, text)])[0] if hasattr(reward, "many") else reward(answer(name, text))


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A judge and a server that like long answers; test_judge.py and test_scores.py of tests/rewards ask over HTTP."""

    def ask(base_url: str, model: str, text: str, **_: Any) -> str:
        return f"Score: {len(text) % 11}"

    def post(url: str, body: dict[str, Any], **_: Any) -> dict[str, list[int]]:
        return {"scores": [len(text) % 2 for text in body["messages"]]}

    monkeypatch.setattr("luthier.rewards.judge.ask", ask)
    monkeypatch.setattr("luthier.rewards.scores.post", post)
    return ask


@pytest.mark.parametrize("name", NAMES)
def test_every_text_gets_the_same_finite_reward_again(name: str) -> None:
    reward = built(name)
    again = pickle.loads(pickle.dumps(reward))
    for what, text in TEXTS.items():
        found = grade(reward, name, text)
        assert isinstance(found, float), (what, found)
        assert -1.0 <= found <= 1.1, what
        assert grade(again, name, text) == found, what


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_a_frozen_dataclass(name: str) -> None:
    cls = REWARDS.get(name)
    assert is_dataclass(cls)
    params: Any = cls.__dataclass_params__  # pyright: ignore[reportAttributeAccessIssue]
    assert params.frozen
    assert all(each.kw_only for each in fields(cls))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_setting_is_refused_with_the_nearest_name(name: str) -> None:
    settings = SETTINGS.get(name, {})
    known = [each.name for each in fields(REWARDS.get(name)) if each.init]
    near = max(known, key=len)
    wrong = near[:-1] + "q" + near[-1]
    with pytest.raises(ConfigError, match=f"reward {name}.*{wrong}.*did you mean '{near}'"):
        build_rewards([NamedPart(name=name, settings={**settings, wrong: 1})])


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_those_that_are_read(name: str) -> None:
    named = build_rewards([NamedPart(name=name, settings=SETTINGS.get(name, {}))])
    check_columns(named, [answer(name, "").example])
    assert set(getattr(named[0].reward, "columns", ())) <= set(answer(name, "").example.extra)
    if getattr(named[0].reward, "columns", ()):
        with pytest.raises(Exception, match=f"rows:2: reward {name} needs the column"):
            check_columns(named, [Example(extra={"other": 1}, origin="rows:2")])
