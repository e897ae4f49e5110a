"""Does a pattern occur in the answer, and does it capture what is right?"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.registry import REWARDS
from luthier.rewards.texts import text_column

if TYPE_CHECKING:
    from luthier.core.types import Answer


def check_pattern(pattern: str, setting: str) -> None:
    """Raise ValueError when Python cannot read a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{setting} is no regular expression: {error}") from error


@REWARDS.register("regex")
@dataclass(frozen=True, kw_only=True, slots=True)
class Regex:
    """1 where the pattern is found, and, if a column is named, captures what stands there; 0 elsewhere."""

    may_hang: ClassVar[bool] = True
    pattern: str
    """A regular expression as Python reads it; a dot stands for line ends too. (?i) in front ignores case."""
    where: Literal["search", "full"] = "search"
    """search: anywhere in the answer; full: the whole answer, blanks at its ends left out."""
    column: str = ""
    """Column that the last match must equal: its first group, or all of it; empty compares nothing."""

    def __post_init__(self) -> None:
        check_pattern(self.pattern, "pattern")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what a row must have."""
        return (self.column,) if self.column else ()

    def __call__(self, answer: Answer) -> float | None:
        """Return 1.0 or 0.0; None where the column is empty."""
        right = text_column(answer.example, self.column) if self.column else ""
        if right is None:
            return None
        compiled, text = re.compile(self.pattern, re.DOTALL), answer.completion.text
        found = [compiled.fullmatch(text.strip())] if self.where == "full" else deque(compiled.finditer(text), maxlen=1)
        if not found or found[-1] is None:
            return 0.0
        if not self.column:
            return 1.0
        captured = found[-1][1] if compiled.groups else found[-1][0]
        return float((captured or "").strip() == right.strip())
