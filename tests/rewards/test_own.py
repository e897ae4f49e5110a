"""Rewards of one's own: how they are named, called, and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.config.rollout import NamedPart
from luthier.core.errors import ConfigError, DataError
from luthier.core.types import Answer, Completion, Example, Message
from luthier.rewards.build import build_rewards, check_columns
from luthier.rewards.grading import Grader

FILE = """
from dataclasses import dataclass

def by_text(text, example):
    return float(text == example.extra["answer"])

def text_alone(text):
    return len(text)

def by_answer(answer):
    return len(answer.completion.tokens) + len(answer.turns)

def with_default(text, example, scale=2.0):
    return scale * len(text)

async def later(text):
    return len(text)

@dataclass(frozen=True, kw_only=True)
class Near:
    target: int
    scale: float = 1.0
    def __call__(self, text, example):
        return -self.scale * abs(len(text) - self.target)

class Plain:
    def __init__(self, bonus=0.0):
        self.bonus = bonus
    def __call__(self, text):
        return self.bonus + len(text)

class Together:
    def many(self, answers):
        return [len(answer.completion.text) for answer in answers]

near = Near(target=2)

def trl(completions, prompts, answer, log_metric=None, **columns):
    assert set(columns) >= {"completion_ids", "level"}, columns
    log_metric("mean", 1.0)
    return [float(text == right) + len(prompt) / 100 for text, prompt, right in zip(completions, prompts, answer)]

def trl_ids(completion_ids):
    return [float(sum(ids)) for ids in completion_ids]

async def trl_later(completions, **columns):
    return [float(len(each)) for each in completions]

def trl_messages(completions: list[list[dict]], prompts, **columns):
    return [len(turns) + len(prompt) / 10 for turns, prompt in zip(completions, prompts)]

def trl_any(completions, **columns):
    return [10.0 * isinstance(each, list) + len(each) for each in completions]

def trl_state(completions, trainer_state):
    return [0.0]

def nothing():
    return 1.0

def other(completion, truth):
    return 1.0

def half(text, truth):
    return 1.0

def swallows(**everything):
    return 1.0

number = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


@pytest.fixture
def graded(folder: Path) -> Callable[..., list[float | None]]:
    """Grades answers by one function or class in FILE."""

    def grade(name: str, *answers: Answer, **settings: Any) -> list[float | None]:
        named = build_rewards([NamedPart(name=f"mine.py:{name}", settings=settings)], folder=folder)
        assert [each.name for each in named] == [name]
        grader = Grader(named, time_limit_seconds=20)
        try:
            return grader.grade(answers).totals
        finally:
            grader.close()

    return grade


def answer(text: str, *turns: str, **columns: object) -> Answer:
    said = tuple(Message(role="user" if i % 2 else "assistant", content=each) for i, each in enumerate(turns))
    asked = (Message(role="system", content="S"), Message(role="user", content="why?"))
    return Answer(
        example=Example(context=asked, extra=columns, origin="rows:4"),
        completion=Completion(prompt_tokens=(1,), tokens=(5, 6), text=text),
        turns=said,
    )


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("by_text", {}, [1.0, 0.0]),
        ("text_alone", {}, [3.0, 2.0]),
        ("by_answer", {}, [2.0, 2.0]),
        ("with_default", {}, [6.0, 4.0]),
        ("later", {}, [3.0, 2.0]),
        ("Near", {"target": 3, "scale": 2}, [0.0, -2.0]),
        ("Near", {"target": 3, "scale": "0.5"}, [0.0, -0.5]),
        ("Plain", {"bonus": 1}, [4.0, 3.0]),
        ("Together", {}, [3.0, 2.0]),
        ("near", {}, [-1.0, 0.0]),
        ("trl", {}, [1.07, 0.07]),
        ("trl_ids", {}, [11.0, 11.0]),
        ("trl_later", {}, [3.0, 2.0]),
        ("trl_messages", {}, [1.2, 1.2]),
        ("trl_any", {}, [3.0, 2.0]),
        ("trl_any", {"completions": "messages"}, [11.0, 11.0]),
        ("trl_messages", {"completions": "text"}, [3.7, 2.7]),
    ],
)
def test_every_form(graded: Callable[..., Any], name: str, settings: dict[str, Any], expected: list[float]) -> None:
    answers = [answer("yes", answer="yes", level=1), answer("no", answer="yes", level=2)]
    assert graded(name, *answers, **settings) == pytest.approx(expected)


def test_conversations_are_passed_as_such_where_the_data_are(graded: Callable[..., Any]) -> None:
    talk = [{"role": "user", "content": "why?"}]
    assert graded("trl_any", answer("yes", prompt=talk), answer("no", prompt=talk)) == [11.0, 11.0]
    assert graded("trl_any", answer("yes", prompt="why?")) == [3.0]
    turns = answer("yes", "a", "b", "yes")
    assert graded("trl_messages", turns) == [3.2]
    assert graded("by_answer", turns) == [5.0]


def test_rewards_of_trl_itself(folder: Path) -> None:
    name = "trl.rewards.format_rewards:think_format_reward"
    grader = Grader(build_rewards([NamedPart(name=name)], folder=folder), time_limit_seconds=60)
    try:
        assert grader.grade([answer("<think>\na\n</think>\nb"), answer("b")]).totals == [1.0, 0.0]
    finally:
        grader.close()


def test_modules_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pack_of_rewards").mkdir()
    (folder / "pack_of_rewards/__init__.py").touch()
    (folder / "pack_of_rewards/lengths.py").write_text(
        "from . import helper\ndef size(text):\n    return helper.of(text)\n"
    )
    (folder / "pack_of_rewards/helper.py").write_text("of = len\n")
    (folder / "beside.py").write_text("import mine\nsize = mine.text_alone\n")
    monkeypatch.chdir(folder)
    names = ["pack_of_rewards.lengths:size", "beside.py:size", f"{folder}/mine.py:text_alone", "mine:text_alone"]
    grader = Grader(build_rewards([NamedPart(name=name) for name in names]), time_limit_seconds=20)
    try:
        assert grader.grade([answer("yes")]).by_name == {
            "size": [3.0], "size_2": [3.0], "text_alone": [3.0], "text_alone_2": [3.0]}  # fmt: skip
    finally:
        grader.close()


_ACCEPTED = r"\(text, example\), \(answer\), or as in TRL \(completions, prompts, \*\*columns\) is expected"


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("mine.py:nothing", {}, rf"reward mine.py:nothing has the parameters \(no parameters\); {_ACCEPTED}"),
        ("mine.py:other", {}, rf"has the parameters \(completion, truth\); {_ACCEPTED}"),
        ("mine.py:half", {}, rf"has the parameters \(text, truth\); {_ACCEPTED}"),
        ("mine.py:swallows", {}, "has the parameters .no parameters."),
        ("mine.py:trl_state", {}, "asks for trainer_state, which there is not here; give it a default"),
        ("mine.py:number", {}, "reward mine.py:number is a int, which cannot be called"),
        ("mine.py:by_txt", {}, "has no 'by_txt'; did you mean 'by_text'"),
        ("mine.py:by_text", {"scale": 2}, "reward mine.py:by_text takes no settings, but 'scale' is given"),
        ("mine.py:near", {"target": 2}, "takes no settings"),
        ("mine.py:Near", {}, "reward mine.py:Near: target is required"),
        ("mine.py:Near", {"target": 3, "scal": 2}, "unknown setting 'scal'.*did you mean 'scale'"),
        ("mine.py:Near", {"target": "long"}, "target: expected a whole number, found text 'long'"),
        ("mine.py:Plain", {"bonsu": 2}, "reward mine.py:Plain: .*bonsu"),
        ("mine.py:by_text", {"completions": "text"}, r"completions is for functions of the form \(completions"),
        ("mine.py:trl", {"completions": "both"}, "completions: expected auto, text or messages, found 'both'"),
        ("nowhere.py:f", {}, "reward nowhere.py:f: there is no file .*nowhere.py"),
        ("no_such_module:f", {}, "cannot import no_such_module: ModuleNotFoundError"),
        ("mine.py:", {}, "write module:function or path/to/file.py:function"),
        (":f", {}, "write module:function or path/to/file.py:function"),
        ("mine.py:a b", {}, "write module:function or path/to/file.py:function"),
        ("exact_mach", {}, "unknown reward 'exact_mach'; did you mean 'exact_match'"),
        ("zzz", {}, "unknown reward 'zzz'. It may be one of: .*exact_match"),
        ("exact_match", {"colum": "a"}, "reward exact_match: unknown setting 'colum'.*did you mean 'column'"),
        ("exact_match", {"ignore_case": "perhaps"}, "reward exact_match: ignore_case: .*found text 'perhaps'"),
        ("soft_overlong", {"cache_tokens": 4}, "reward soft_overlong: max_tokens is required"),
        ("soft_overlong", {"max_tokens": 4, "cache_tokens": 5}, "cache_tokens 5 is more than max_tokens 4"),
    ],
)
def test_what_is_refused(folder: Path, name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_rewards([NamedPart(name=name, settings=settings)], folder=folder)


def test_a_file_that_cannot_be_imported_is_told_with_its_line(folder: Path) -> None:
    (folder / "also_broken.py").write_text("\n1 / 0\n")
    for text, sentence in (
        ("x = 1\ndef f(:\n", "line 2: SyntaxError"),
        ("\n\nimport no_such_thing_at_all\n", "line 3: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
        ("import also_broken\n", r"also_broken\.py, line 2: ZeroDivisionError"),
    ):
        (folder / "broken.py").write_text(text)
        with pytest.raises(ConfigError, match=rf"reward broken.py:f: cannot import .*broken\.py, {sentence}"):
            build_rewards([NamedPart(name="broken.py:f")], folder=folder)


def test_everything_wrong_is_told_together(folder: Path) -> None:
    parts = [NamedPart(name="exact_mach"), NamedPart(name="mine.py:by_text"), NamedPart(name="mine.py:nothing")]
    with pytest.raises(ConfigError) as caught:
        build_rewards(parts, folder=folder)
    assert [line.split(" ")[0:2] for line in str(caught.value).splitlines()] == [
        ["unknown", "reward"], ["reward", "mine.py:nothing"]]  # fmt: skip


def test_a_missing_column_is_named(folder: Path, graded: Callable[..., Any]) -> None:
    named = build_rewards([NamedPart(name="mine.py:trl"), NamedPart(name="exact_match")], folder=folder)
    check_columns(named, [Example(extra={"answer": "a"}, origin="rows:1")])
    rows = [Example(extra={"answer": "a"}, origin="rows:1"), Example(extra={"level": 3, "truth": 1}, origin="rows:2")]
    with pytest.raises(DataError) as caught:
        check_columns(named[:1], rows)
    assert str(caught.value) == "rows:2: reward trl needs the column 'answer', but there are: 'level', 'truth'"
    assert caught.value.code == "reward_column"
    with pytest.raises(DataError, match="rows:2: reward exact_match needs the column 'answer'"):
        check_columns(named[1:], rows)
    with pytest.raises(DataError, match=r"reward mine.py:trl asks for answer, but rows:4 has level"):
        graded("trl", answer("yes", level=1))
