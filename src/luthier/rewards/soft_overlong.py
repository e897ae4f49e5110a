"""Soft overlong punishment (DAPO, arXiv:2503.14476, equation 13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.config.schema import Positive
from luthier.core.registry import REWARDS

if TYPE_CHECKING:
    from luthier.core.types import Answer


@REWARDS.register("soft_overlong")
@dataclass(frozen=True, kw_only=True, slots=True)
class SoftOverlong:
    """0 for answers of usual length, falling to -1 over the last `cache_tokens` before `max_tokens`."""

    may_hang: ClassVar[bool] = False
    max_tokens: Positive
    """Length from which on the punishment is -1; usually max_completion_length."""
    cache_tokens: Annotated[int, Field(ge=0)]
    """Tokens before it over which the punishment grows."""

    def __post_init__(self) -> None:
        if self.cache_tokens > self.max_tokens:
            raise ValueError(f"cache_tokens {self.cache_tokens} is more than max_tokens {self.max_tokens}")

    def __call__(self, answer: Answer) -> float:
        """Return a number in -1 .. 0 from the number of tokens."""
        length, begins = len(answer.completion.tokens), self.max_tokens - self.cache_tokens
        if length <= begins:
            return 0.0
        return -1.0 if length > self.max_tokens else (begins - length) / self.cache_tokens
