"""Answers -> rewards: each reward alone, their weighted sum, and what failed, in bounded time."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.log import say_once
from luthier.core.protocols import Reward
from luthier.core.types import Answer
from luthier.rewards.outcomes import Failure, Outcome, as_outcome, failure_of, grade_together
from luthier.rewards.worker import Job, Worker


@dataclass(frozen=True, slots=True)
class NamedReward:
    """A reward, the name it is logged by, and its weight in the sum.

    What the reward may tell about itself: `may_hang` (False: runs here; True: in a process that is killed after the
    time limit), `many(answers)` (grades all answers in one call), `time_limit_seconds` (of its own), `parallel`
    (answers that are graded at the same time), `columns` (what a row must have), `reads_written` (it wants
    `Answer.written`).
    """

    name: str
    weight: float
    reward: Reward | Callable[[Answer], float | None]


@dataclass(frozen=True, slots=True)
class Grades:
    """What a call of `Grader.grade` found, in the order of the answers."""

    by_name: Mapping[str, list[float | None]]
    """Each reward alone, before its weight; None is missing."""
    totals: list[float | None]
    """Weighted sum; None where any reward is missing, because sums of different rewards do not compare."""
    failed: Mapping[str, int]
    """Answers without this reward."""
    first_error: str | None
    complaint: str | None = None
    """What to say when there is nothing to learn from: no answer has all its rewards."""


class Grader:
    """Applies rewards to answers.

    A reward that raises, takes longer than its limit, or returns None, NaN or what is no number is missing for that
    answer. Not for several threads at once.
    """

    def __init__(
        self,
        rewards: Sequence[NamedReward],
        *,
        time_limit_seconds: float,
        written: Callable[[Answer], str] | None = None,
    ) -> None:
        """`written`: answer -> prompt and answer as the model saw them, for rewards that read that."""
        self.written = written
        self.rewards = distinct(rewards)
        self.weights = {each.name: each.weight for each in self.rewards}
        self.time_limit_seconds = time_limit_seconds
        self._pickles = [_pickle_of(each) for each in self.rewards]
        self._worker = Worker()

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """Grade every answer by every reward.

        Raises whatever LuthierError a reward raises because of settings or data: a missing column, say.
        """
        by_name: dict[str, list[float | None]] = {}
        failed: dict[str, int] = {}
        first: str | None = None
        for number, each in enumerate(self.rewards):
            outcomes = self._outcomes(number, answers) if answers else []
            failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            by_name[each.name] = [None if isinstance(outcome, Failure) else outcome for outcome in outcomes]
            failed[each.name] = len(failures)
            for kind in {failure.kind: failure for failure in reversed(failures)}.values():
                self._say(each.name, kind)
            first = first or (f"reward {each.name} {failures[0].message}" if failures else None)
        totals = [self._total([values[i] for values in by_name.values()]) for i in range(len(answers))]
        complaint = None
        if answers and first is not None and all(total is None for total in totals):
            worst = max(failed, key=lambda name: failed[name])
            complaint = (
                f"no answer of this step has all its rewards ({worst} is missing for {failed[worst]} of "
                f"{len(answers)}); the first error: {first}"
            )
        return Grades(by_name, totals, failed, first, complaint)

    def close(self) -> None:
        """End the process that rewards run in."""
        self._worker.close()

    def _total(self, values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        if len(there) < len(values) or not values:
            return None
        return sum(weight * value for weight, value in zip(self.weights.values(), there, strict=True))

    def _outcomes(self, number: int, answers: Sequence[Answer]) -> list[Outcome]:
        reward, pickled = self.rewards[number].reward, self._pickles[number]
        if self.written is not None and getattr(reward, "reads_written", False):
            answers = [replace(answer, written=self.written(answer)) for answer in answers]
        together = hasattr(reward, "many")
        if pickled is None:
            return _grade_here(reward, answers, together=together)
        job = Job(
            number=number,
            reward=pickled,
            units=[answers] if together else [[answer] for answer in answers],
            together=together,
            parallel=getattr(reward, "parallel", 1),
            seconds=getattr(reward, "time_limit_seconds", None) or self.time_limit_seconds,
        )
        return self._worker.run(job)

    def _say(self, name: str, failure: Failure) -> None:
        remedy = "; reward_time_limit_seconds sets the limit" if failure.kind == "time limit" else ""
        message = f"{failure.message}{remedy}; such answers are left out and counted as reward/failed"
        if (name, failure.kind) not in _said:
            _said.add((name, failure.kind))
            say_once(f"reward {name} {message}")


_said: set[tuple[str, str]] = set()


def distinct(rewards: Sequence[NamedReward]) -> list[NamedReward]:
    """Return the rewards with names that differ: the second `length` becomes length_2."""
    taken: set[str] = set()
    named: list[NamedReward] = []
    for each in rewards:
        name, number = each.name, 1
        while name in taken:
            number += 1
            name = f"{each.name}_{number}"
        taken.add(name)
        named.append(NamedReward(name, each.weight, each.reward))
    return named


def _pickle_of(named: NamedReward) -> bytes | None:
    """Return what is sent to the other process; None for rewards that run here."""
    reward: Any = named.reward
    if not getattr(reward, "may_hang", not hasattr(reward, "many")):
        return None
    try:
        return pickle.dumps(reward)
    except Exception:  # noqa: BLE001  foreign objects pickle themselves
        say_once(f"reward {named.name} cannot be sent to another process, so it runs here and has no time limit")
        return None


def _grade_here(reward: Any, answers: Sequence[Answer], *, together: bool) -> list[Outcome]:
    if together:
        try:
            return grade_together(reward, answers)
        except LuthierError:
            raise
        except Exception as error:  # noqa: BLE001  a reward is foreign code; its failures are counted
            return [failure_of(error)] * len(answers)
    outcomes: list[Outcome] = []
    for answer in answers:
        try:
            outcomes.append(as_outcome(reward(answer)))
        except LuthierError:
            raise
        except Exception as error:  # noqa: BLE001  a reward is foreign code; its failures are counted
            outcomes.append(failure_of(error))
    return outcomes
