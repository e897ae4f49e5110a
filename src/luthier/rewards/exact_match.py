"""Is the answer the one in the data?"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, ClassVar

from luthier.config.schema import Names
from luthier.core.registry import REWARDS
from luthier.rewards.texts import after_last, column

if TYPE_CHECKING:
    from luthier.core.types import Answer

LONGEST_NUMBER = 200


@REWARDS.register("exact_match")
@dataclass(frozen=True, kw_only=True, slots=True)
class ExactMatch:
    """1 where the answer equals the column, 0 elsewhere."""

    may_hang: ClassVar[bool] = False
    column: str = "answer"
    """Column with the right answer, or a list of right answers."""
    after: Names = ()
    """Only what stands behind the last of these marks counts, such as "####" or "Answer:"; without one the answer is
    wrong. In the column they are optional."""
    ignore_case: bool = False
    """Large and small letters are the same."""
    ignore_space: bool = True
    """Blanks at the ends do not count, and several inside count as one."""
    ignore_punctuation: bool = False
    """Punctuation at the ends does not count."""
    numbers: bool = False
    """Numbers are compared by value: 1,000.0 is 1000."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what a row must have."""
        return (self.column,)

    def __call__(self, answer: Answer) -> float | None:
        """Return 1.0 or 0.0; None where the column is empty."""
        right = column(answer.example, self.column)
        if right is None:
            return None
        found = after_last(answer.completion.text, self.after)
        if found is None:
            return 0.0
        given = self._plain(found)
        several = right if isinstance(right, (list, tuple)) else [right]
        return float(any(self._equal(given, self._plain(self._expected(str(each)))) for each in several))

    def _expected(self, text: str) -> str:
        found = after_last(text, self.after)
        return text if found is None else found

    def _plain(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if self.ignore_space:
            text = " ".join(text.split())
        if self.ignore_punctuation:
            text = _without_punctuation(text)
        return text.casefold() if self.ignore_case else text

    def _equal(self, given: str, right: str) -> bool:
        if given == right:
            return True
        if not self.numbers:
            return False
        one, other = number_in(given), number_in(right)
        return one is not None and other is not None and one == other


def _without_punctuation(text: str) -> str:
    start, end = 0, len(text)
    while start < end and (text[start].isspace() or unicodedata.category(text[start]).startswith("P")):
        start += 1
    while end > start and (text[end - 1].isspace() or unicodedata.category(text[end - 1]).startswith("P")):
        end -= 1
    return text[start:end]


def number_in(text: str) -> Decimal | None:
    """Return the number that a text is, read as people write it; None where it is none.

    >>> number_in("$1,000.50"), number_in("7 apples")
    (Decimal('1000.50'), None)
    """
    bare = text.strip().rstrip(".").removeprefix("$").replace(",", "").replace(" ", "").replace("_", "x")
    if not bare or len(bare) > LONGEST_NUMBER:
        return None
    try:
        value = Decimal(bare)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
