"""Is the answer of the wanted length?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.core.registry import REWARDS

if TYPE_CHECKING:
    from luthier.core.types import Answer


@REWARDS.register("length")
@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How near the answer is to a length, or whether it keeps to one; in tokens, the end of the turn included."""

    may_hang: ClassVar[bool] = False
    target_tokens: Annotated[int, Field(ge=0)] = 0
    """1 at this length, falling evenly to 0 at no tokens and at twice as many."""
    most_tokens: Annotated[int, Field(ge=0)] = 0
    """1 up to this length, 0 beyond."""

    def __post_init__(self) -> None:
        if (self.target_tokens > 0) == (self.most_tokens > 0):
            raise ValueError("length needs one of target_tokens and most_tokens, above 0")

    def __call__(self, answer: Answer) -> float:
        """Return a number in 0 .. 1."""
        length = len(answer.completion.tokens)
        if self.most_tokens > 0:
            return float(length <= self.most_tokens)
        return max(0.0, 1.0 - abs(length - self.target_tokens) / self.target_tokens)
