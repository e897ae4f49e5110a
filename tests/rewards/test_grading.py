"""What becomes of rewards that raise, hang, end their process or return what is no number."""

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from luthier.config.rollout import NamedPart
from luthier.core.errors import DataError
from luthier.core.types import Answer, Completion, Example
from luthier.rewards import worker
from luthier.rewards.build import build_rewards
from luthier.rewards.grading import Grader, NamedReward, distinct
from luthier.rewards.outcomes import Failure, as_outcome

FILE = """
import math, os, sys, time
from luthier.core.errors import DataError

def grade(text, example):
    if text == "raise":
        raise KeyError("no such thing")
    if text == "busy":
        while True:
            pass
    if text == "sleep":
        time.sleep(99)
    if text == "exit":
        sys.exit("enough of this")
    if text == "die":
        os._exit(7)
    if text == "fork":
        return float(os.fork() > 0)
    if text == "print":
        print("spam " * 100_000)
    if text == "data":
        raise DataError("rows:1: the column is broken", code="reward_column")
    return {"none": None, "nan": math.nan, "inf": -math.inf, "text": "1.0", "list": [1.0]}.get(text, float(len(text)))

def only_bad(text, example):
    return None if text == "good" else 1.0

def only_good(text, example):
    return None if text == "bad" else 1.0

def process(text, example):
    return float(os.getpid())

def together(completions, **columns):
    if "hang" in completions:
        time.sleep(99)
    return [None if each == "none" else float(len(each)) for each in completions]
"""


def answers(*texts: str) -> list[Answer]:
    done = [Completion(prompt_tokens=(1,), tokens=(1, 2), text=text) for text in texts]
    return [Answer(example=Example(origin=f"rows:{i}"), completion=each) for i, each in enumerate(done)]


@pytest.fixture
def grader(tmp_path: Path) -> Iterator[Callable[..., Grader]]:
    """Makes graders of functions in FILE, and ends their processes."""
    (tmp_path / "graders.py").write_text(FILE)
    made: list[Grader] = []

    def make(*names: str, seconds: float = 20.0, weights: Sequence[float] = ()) -> Grader:
        both = zip(names, weights or (1.0,) * len(names), strict=True)
        parts = [NamedPart(name=f"graders.py:{name}", weight=weight) for name, weight in both]
        made.append(Grader(build_rewards(parts, folder=tmp_path), time_limit_seconds=seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_is_no_number_is_missing_and_counted(grader: Callable[..., Grader]) -> None:
    texts = ["ok", "raise", "none", "nan", "inf", "text", "list", "yes"]
    grades = grader("grade").grade(answers(*texts))
    assert grades.by_name == {"grade": [2.0, *[None] * 6, 3.0]}
    assert grades.totals == [2.0, *[None] * 6, 3.0]
    assert grades.failed == {"grade": 6}
    assert grades.first_error == "reward grade KeyError: 'no such thing' (graders.py, line 7)"


@pytest.mark.parametrize("text", ["busy", "sleep"])
def test_what_hangs_is_ended_and_those_behind_it_are_graded(grader: Callable[..., Grader], text: str) -> None:
    made, began = grader("grade", seconds=0.4), time.monotonic()
    grades = made.grade(answers("a", text, "bb", "ccc"))
    assert grades.by_name["grade"] == [1.0, None, 2.0, 3.0]
    assert grades.failed["grade"] == 1
    assert grades.first_error == "reward grade took longer than 0.4 s"
    assert time.monotonic() - began < 10
    assert made.grade(answers("dddd")).totals == [4.0]


@pytest.mark.parametrize(("text", "words"), [
    ("exit", r"its process ended \(exit code 1\): enough of this"),
    ("die", r"its process ended \(exit code 7\)"),
])  # fmt: skip
def test_a_reward_may_end_its_process(grader: Callable[..., Grader], text: str, words: str) -> None:
    grades = grader("grade").grade(answers("a", text, "bb"))
    assert grades.by_name["grade"] == [1.0, None, 2.0]
    assert re.search(words, str(grades.first_error))


def test_what_forks_or_prints_does_no_harm(grader: Callable[..., Grader]) -> None:
    assert grader("grade").grade(answers("fork", "print", "a")).totals == [1.0, 5.0, 1.0]


def test_all_rewards_share_a_process_that_stays(grader: Callable[..., Grader]) -> None:
    made = grader("process", "process", "grade")
    first, second = made.grade(answers("a", "b")), made.grade(answers("a"))
    found = {value for grades in (first, second) for name in ("process", "process_2") for value in grades.by_name[name]}
    assert len(found) == 1
    made.close()
    assert made.grade(answers("a")).by_name["process"] != second.by_name["process"]


def complaint_of(made: Grader, *texts: str) -> str:
    """What is said when no answer has all its rewards."""
    complaint = made.grade(answers(*texts)).complaint
    assert complaint is not None
    return complaint


def test_no_answer_with_all_its_rewards_is_a_reason_to_stop(grader: Callable[..., Grader]) -> None:
    assert complaint_of(grader("grade"), "raise", "nan", "raise") == (
        "no answer of this step has all its rewards (grade is missing for 3 of 3); the first error: reward grade "
        "KeyError: 'no such thing' (graders.py, line 7)"
    )
    assert "only_bad returned None" in complaint_of(grader("only_bad", "only_good"), "good", "bad")
    some = grader("only_bad", "only_good").grade(answers("good", "bad", "other"))
    assert (some.totals, some.complaint) == ([None, None, 2.0], None)


def test_an_error_of_data_stops_the_run_with_its_sentence(grader: Callable[..., Grader]) -> None:
    made = grader("grade")
    with pytest.raises(DataError, match="rows:1: the column is broken") as caught:
        made.grade(answers("a", "data", "b"))
    assert caught.value.code == "reward_column"
    assert made.grade(answers("a")).totals == [1.0]


def test_a_batch_is_graded_and_ended_as_one(grader: Callable[..., Grader]) -> None:
    made = grader("together", seconds=0.5)
    assert made.grade(answers("a", "none", "ccc")).totals == [1.0, None, 3.0]
    assert re.search("missing for 2 of 2.*took longer than 0.5 s", complaint_of(made, "a", "hang"))
    assert made.grade(answers("a")).totals == [1.0]


def test_a_file_that_is_gone_is_told(grader: Callable[..., Grader], tmp_path: Path) -> None:
    made = grader("grade")
    (tmp_path / "graders.py").unlink()
    assert re.search(r"cannot import .*graders\.py", complaint_of(made, "a"))


def test_an_import_that_hangs_is_ended(
    grader: Callable[..., Grader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SECONDS_TO_START", 2.0)
    made = grader("grade")
    (tmp_path / "graders.py").write_text("import time\ntime.sleep(99)\n")
    assert "took longer than 2 s" in complaint_of(made, "a", "b")


def test_each_kind_of_failure_is_said_once(
    grader: Callable[..., Grader], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    for place in ("core.log", "rewards.grading"):
        monkeypatch.setattr(f"luthier.{place}._said", set())
    made = grader("only_good", seconds=7.5)
    for _ in range(3):
        made.grade(answers("good", "bad", "bad"))
    said = [record.getMessage() for record in caplog.records if "only_good" in record.getMessage()]
    assert said == ["reward only_good returned None; such answers are left out and counted as reward/failed"]


def test_the_sum_is_weighted(grader: Callable[..., Grader]) -> None:
    made = grader("grade", "only_good", weights=(0.5, -2.0))
    grades = made.grade(answers("good", "yes", "bad"))
    assert made.weights == {"grade": 0.5, "only_good": -2.0}
    assert grades.by_name == {"grade": [4.0, 3.0, 3.0], "only_good": [1.0, 1.0, None]}
    assert grades.totals == [0.0, -0.5, None]
    assert made.grade([]).totals == []


@dataclass(frozen=True)
class Here:
    """A reward that is graded in this process, all answers at once."""

    may_hang: ClassVar[bool] = False
    given: Any

    def many(self, answers: Sequence[Answer]) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.mark.parametrize(
    ("given", "totals"),
    [
        ([1, True, 0.5], [1.0, 1.0, 0.5]),
        (iter([1, 2, 3]), [1.0, 2.0, 3.0]),
        ([1, ValueError("not this one"), None], [1.0, None, None]),
        ([1, 2], "returned 2 rewards for 3 answers"),
        (None, "returned NoneType instead of a list with one reward per answer"),
        (1.0, "returned float instead of a list"),
        (ValueError("none of them"), "ValueError: none of them"),
    ],
)
def test_what_a_batch_may_return(given: Any, totals: Any) -> None:
    here: Any = Here(given)
    grader = Grader([NamedReward("here", 1.0, here)], time_limit_seconds=1)
    if isinstance(totals, str):
        assert re.search(f"missing for 3 of 3.*{totals}", complaint_of(grader, "a", "b", "c"))
    else:
        assert grader.grade(answers("a", "b", "c")).totals == totals


def test_what_cannot_be_sent_to_another_process_runs_here(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: list[str] = []

    def keeps(answer: Answer) -> float:
        seen.append(answer.completion.text)
        return 1.0

    assert Grader([NamedReward("keeps", 1.0, keeps)], time_limit_seconds=1).grade(answers("a")).totals == [1.0]
    assert seen == ["a"]
    assert "reward keeps cannot be sent to another process, so it runs here and has no time limit" in caplog.text


def test_numbers_of_libraries_are_numbers() -> None:
    import numpy as np
    import torch

    assert [as_outcome(each) for each in (np.float32(0.5), np.int64(2), torch.tensor(0.25), np.bool_(1))] == [
        0.5, 2.0, 0.25, 1.0]  # fmt: skip
    for each in (None, math.nan, math.inf, "1", b"1", [1.0], np.zeros(3), torch.zeros(2), object()):
        assert isinstance(as_outcome(each), Failure)


def test_two_rewards_of_one_name_get_two_names() -> None:
    def same(answer: Answer) -> float:
        return 1.0

    named = [NamedReward(name, weight, same) for name, weight in (("a", 1), ("a_2", 2), ("a", 3), ("a", 4), ("b", 5))]
    assert [(each.name, each.weight) for each in distinct(named)] == [
        ("a", 1), ("a_2", 2), ("a_3", 3), ("a_4", 4), ("b", 5)]  # fmt: skip
