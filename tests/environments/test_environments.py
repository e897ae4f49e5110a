"""Environments: how they are named, what they ask, what they answer, and what grades them."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from luthier.config.rollout import NamedPart
from luthier.core.errors import ConfigError, DependencyError
from luthier.core.registry import ENVIRONMENTS, REWARDS
from luthier.core.types import Answer, Completion, Example, Message
from luthier.environments.build import build_environment
from luthier.environments.calculator import asked_for, calculate
from luthier.rewards.build import build_rewards, check_columns
from luthier.rewards.grading import Grader

SETTINGS: dict[str, dict[str, Any]] = {"reasoning_gym": {"task": "chain_sum"}}
"""Settings of environments that need some."""
OWN = '''
from dataclasses import dataclass
from luthier.core.types import Example, Message

@dataclass(frozen=True)
class Echo:
    """Says what was said."""
    times: int = 1
    def examples(self):
        return [Example(context=(Message(role="user", content="hi"),))] * self.times
    def step(self, example, turns):
        return Message(role="user", content=turns[-1].content)

class Bare:
    def examples(self):
        return []

ready = Echo(times=3)
'''


def built(name: str, folder: Path | None = None, **settings: Any) -> Any:
    return build_environment(NamedPart(name=name, settings={**SETTINGS.get(name, {}), **settings}), folder)


def said(content: str, role: Any = "assistant") -> Message:
    return Message(role=role, content=content)


def episode(example: Example, *contents: str) -> Answer:
    """An episode of turns, the model's first and then in exchange; its text is that of the last one of the model."""
    turns = tuple(said(text, "user" if i % 2 else "assistant") for i, text in enumerate(contents))
    done = Completion(prompt_tokens=(1,), tokens=(1,), text=contents[-1])
    return Answer(example=example, completion=done, turns=turns)


@pytest.mark.parametrize("name", ENVIRONMENTS.names())
def test_every_environment_is_deterministic_and_brings_a_reward_that_can_read_it(name: str) -> None:
    cls = ENVIRONMENTS.get(name)
    assert is_dataclass(cls)
    assert all(each.kw_only for each in fields(cls))
    made = built(name, size=6)
    examples = made.examples()
    assert len(examples) == 6
    assert examples == built(name, size=6).examples()
    assert examples != built(name, size=6, data_seed=7).examples()
    assert built(name, size=3).examples() == examples[:3]
    assert len({each.origin for each in examples}) == 6
    assert all(each.context[-1].role == "user" and not each.endings for each in examples)
    assert made.reward in REWARDS.names()
    check_columns(build_rewards([], made), examples)
    for text in ("", "\0", "<tool>" * 999, "<tool_call>{", "[" * 9999, "\ud800"):
        assert made.step(examples[0], [said(text)]) is None or made.step(examples[0], [said(text)]).content


@pytest.mark.parametrize("name", ENVIRONMENTS.names())
def test_a_right_answer_is_worth_more_than_a_wrong_one(name: str) -> None:
    made = built(name, size=2)
    first, second = made.examples()
    right, other = (f"so <answer>{each.extra['answer']}</answer>" for each in (first, second))
    grader = Grader(build_rewards([], made), time_limit_seconds=30)
    try:
        grades = grader.grade([episode(first, right), episode(first, other), episode(first, "no")])
    finally:
        grader.close()
    one, two, three = grades.totals
    assert one == 1.0
    assert (two or 0.0) < 1.0
    assert (three or 0.0) < 1.0


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(2+3)*4", "20"),
        ("999*998*997", "994010994"),
        ("-7//2", "-4"),
        ("7%4", "3"),
        ("6/3", "2"),
        ("0.1+0.2", "0.3"),
        ("1/3", "0.333333333333333"),
        ("123456789012/8", "15432098626.5"),
        ("1/0", "error: division by zero"),
        ("1e29*100", "error: the number is too large"),
        ("1e999", "error: the number is too large"),
        ("9" * 201, "error: an expression may have 200 characters"),
        *((text, "error: only numbers, + - * / // % and parentheses are known")
          for text in ("9**9**9", "", "True", "2j", "'a'*9", "[1]*9", "open('x')", "a", "1,000", "(" * 150, "1<<9", "\0",
                       "1if 2else 3", "().__class__")),
    ],
)  # fmt: skip
def test_a_calculation(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("turn", "expression"),
    [
        (said("I ask <tool> 3*4 </tool>"), "3*4"),
        (said("<tool>1</tool> then <tool>2</tool>"), "2"),
        (said("stopped early <tool>3*4"), "3*4"),
        (said('<tool_call>\n{"name": "calculator", "arguments": {"expression": "3*4"}}\n</tool_call>'), "3*4"),
        (said("<tool_call>nonsense</tool_call>"), ""),
        (said('<tool_call>["a"]</tool_call>'), ""),
        (Message(role="assistant", content="", tool_calls=({"arguments": '{"expression": "5"}'},)), "5"),
        (said("<answer>12</answer>"), None),
        (said("12"), None),
    ],
)
def test_what_a_turn_asks_for(turn: Message, expression: str | None) -> None:
    assert asked_for(turn) == expression


def test_the_calculator_answers_in_tags_or_as_a_tool() -> None:
    tags, template = built("calculator", size=40), built("calculator", size=1, calls="template")
    for example in tags.examples():
        asked = f"<tool>{example.extra['expression']}</tool>"
        assert tags.step(example, [said(asked)]) == said(f"<result>{example.extra['answer']}</result>", "user")
    (example,) = template.examples()
    assert json.loads(example.tools)[0]["function"]["name"] == "calculator"
    assert "<tool>" not in example.context[0].content
    assert template.step(example, [said('<tool_call>{"arguments": {"expression": "2*3"}}</tool_call>')]) == said(
        "6", "tool"
    )
    assert tags.step(example, [said("<answer>6</answer>")]) is None


def test_the_number_in_the_last_turn_counts() -> None:
    (named,) = build_rewards([NamedPart(name="calculator_answer", settings={"tool_bonus": 0.25})])
    example = Example(extra={"answer": "84"})
    grade: Any = named.reward
    assert grade(episode(example, "<tool>12*7</tool>", "<result>84</result>", "<answer>84</answer>")) == 1.25
    assert grade(episode(example, "<answer>84</answer>")) == 1.0
    assert grade(episode(example, "<answer> 84.0 </answer>")) == 1.0
    assert grade(episode(example, "<answer>84</answer> <answer>85</answer>")) == 0.0
    assert grade(episode(example, "<answer>84</answer>", "<result>84</result>", "84")) == 0.25
    assert grade(episode(example, "<tool>12**7</tool>", "<result>error: no</result>", "84")) == 0.0
    assert grade(episode(Example(extra={"answer": None}), "<answer>84</answer>")) is None


def test_environments_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worlds.py").write_text(OWN)
    assert len(built("worlds.py:Echo", tmp_path, times=2).examples()) == 2
    assert len(built(f"{tmp_path}/worlds.py:ready").examples()) == 3
    (tmp_path / "worlds_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert built("worlds_of_a_test:Echo").step(Example(), [said("a")]).content == "a"
    for name, settings, sentence in (
        ("worlds.py:Ecko", {}, "has no 'Ecko'; did you mean 'Echo'"),
        ("worlds.py:Echo", {"tims": 2}, "unknown setting 'tims'.*did you mean 'times'"),
        ("worlds.py:Echo", {"times": "x"}, "times: expected a whole number, found text 'x'"),
        ("worlds.py:ready", {"times": 2}, "takes no settings"),
        ("worlds.py:Bare", {}, "environment worlds.py:Bare has no step: examples"),
        ("nowhere.py:Echo", {}, "there is no file .*nowhere.py"),
        ("no_such_module:Echo", {}, "cannot import no_such_module"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            built(name, tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("calculatr", {}, "unknown environment 'calculatr'; did you mean 'calculator'"),
        ("calculator", {"siz": 3}, "environment calculator: unknown setting 'siz'.*did you mean 'size'"),
        ("calculator", {"size": 0}, "environment calculator: size: "),
        ("calculator", {"calls": "json"}, "environment calculator: calls: "),
        ("reasoning_gym", {"task": 7}, "environment reasoning_gym: task: "),
        ("reasoning_gym", {"config": {"seed": 1}}, "config: seed is a setting of the environment; set data_seed"),
    ],
)
def test_settings_that_are_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        built(name, **settings)


def test_what_reasoning_gym_does_not_know() -> None:
    with pytest.raises(ConfigError, match="unknown task 'chain_smu'; did you mean 'chain_sum'"):
        built("reasoning_gym", task="chain_smu").examples()
    with pytest.raises(ConfigError, match="environment reasoning_gym: chain_sum: .*min_trems"):
        built("reasoning_gym", config={"min_trems": 2}).examples()
    with pytest.raises(ConfigError, match="environment reasoning_gym: chain_sum: .*min_terms"):
        built("reasoning_gym", config={"min_terms": -2}).examples()


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "reasoning_gym" else object())
    with pytest.raises(DependencyError, match=r"environment reasoning_gym needs .*pip install 'luthier\[rl\]'"):
        built("reasoning_gym")
