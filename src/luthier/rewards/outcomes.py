"""What a reward said about one answer: a number, or why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Answer


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an answer has no reward."""

    kind: str
    """Name of an exception, or "time limit" and the like: the first failure of each kind is told."""
    message: str


Outcome = float | Failure


def as_outcome(value: object) -> Outcome:
    """Return what a reward returned as a finite number, or what is wrong with it."""
    if isinstance(value, Failure):
        return value
    if isinstance(value, BaseException):
        return failure_of(value)
    if value is None:
        return Failure("none", "returned None")
    if isinstance(value, (str, bytes)):
        return Failure("no number", f"returned text instead of a number: {value[:60]!r}")
    number: Any = value
    try:
        number = float(number)
    except Exception:  # noqa: BLE001  foreign objects convert themselves
        return Failure("no number", f"returned {type(value).__name__} instead of a number")
    return number if math.isfinite(number) else Failure("not finite", f"returned {number}")


def failure_of(error: BaseException) -> Failure:
    """Return the failure that an exception is, with the place in the user's code where there is one."""
    name, text = type(error).__name__, " ".join(str(error).split())[:300]
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return Failure(name, f"{name}: {text}" + (f" ({place})" if place else ""))


def grade_together(reward: Any, answers: Sequence[Answer]) -> list[Outcome]:
    """Return the outcomes of one call of `many`. Exceptions inside the list are those of single answers."""
    found = reward.many(answers)
    try:
        values = list(found)
    except TypeError:
        raise TypeError(f"returned {type(found).__name__} instead of a list with one reward per answer") from None
    if len(values) != len(answers):
        raise ValueError(f"returned {len(values)} rewards for {len(answers)} answers")
    return [as_outcome(value) for value in values]
