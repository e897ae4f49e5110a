"""Is the mathematics the same? By math-verify, which knows that 1/2, 0.5 and 50% are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from luthier.config.schema import Names
from luthier.core.registry import REWARDS
from luthier.rewards.texts import after_last, last_boxed, text_column

if TYPE_CHECKING:
    from luthier.core.types import Answer

LONGEST = 20_000
"""Characters of an answer that are read, from its end."""
_MARKS = ("$", "\\boxed", "\\(", "\\[")
"""Text with one of these says itself where its mathematics is."""


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    # The process that this runs in is ended after the time limit; math-verify's own limits need its signals.
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
    return parse(text, parsing_timeout=0)


@lru_cache(maxsize=4096)
def _right(text: str) -> tuple[Any, ...]:
    marked = text if any(mark in text for mark in _MARKS) else f"\\boxed{{{text}}}"
    return tuple(_parse(marked))


def _is_same(right: tuple[Any, ...], given: list[Any]) -> bool:
    from math_verify import verify

    logging.getLogger("math_verify.grader").setLevel(logging.ERROR)
    return bool(verify(list(right), given, timeout_seconds=0))


@REWARDS.register("math")
@dataclass(frozen=True, kw_only=True, slots=True)
class Math:
    r"""1 where the last formula or number of the answer equals that of the column, 0 elsewhere; \boxed{} goes first."""

    may_hang: ClassVar[bool] = True
    requires: ClassVar[dict[str, str]] = {"math_verify": "rl"}
    column: str = "answer"
    """Column with the right answer: a number, a formula, or text with one in it."""
    after: Names = ()
    """Only what stands behind the last of these marks counts, in the column too: "####" for GSM8K."""
    time_limit_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Longest time for one answer."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what a row must have."""
        return (self.column,)

    def __call__(self, answer: Answer) -> float | None:
        """Return 1.0 or 0.0; None where the column holds no mathematics."""
        expected = text_column(answer.example, self.column)
        if expected is None:
            return None
        cut = after_last(expected, self.after)
        right = _right((expected if cut is None else cut).strip())
        if not right:
            return None
        found = self.candidate(answer.completion.text)
        return 0.0 if found is None else float(_is_same(right, _parse(found[-LONGEST:])))

    def candidate(self, text: str) -> str | None:
        """Return the part of the answer that is read; None where there is none."""
        return after_last(text, self.after)


@REWARDS.register("boxed")
@dataclass(frozen=True, kw_only=True, slots=True)
class Boxed(Math):
    r"""As math, but only what stands in the last \boxed{} counts; an answer without one is wrong."""

    def candidate(self, text: str) -> str | None:
        """Return the last box."""
        found = last_boxed(text)
        return None if found is None else f"\\boxed{{{found}}}"
