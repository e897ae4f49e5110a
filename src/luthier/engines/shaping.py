"""What one request asks of the decoder beyond how answers are drawn, and what it hears while they grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Guide(Protocol):
    """Follows one answer and says which tokens may come next: constrained decoding."""

    def allowed_V(self) -> Tensor | None:
        """Return which tokens may come next, bool [V]; None allows every one."""
        ...

    def take(self, token: int) -> None:
        """Note the token that came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """Changes of the distribution that a request asks for, and what it wants to know of it."""

    presence_penalty: float = 0.0
    """Taken from the logit of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time that the answer has it already."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of tokens."""
    top_logprobs: int = 0
    """Most probable tokens reported beside each token of the answer."""
    guide: Callable[[], Guide] | None = None
    """Makes what says which tokens may come next, one for each answer."""
    adapter: str | None = None
    """Name of the adapter that answers; None is the model itself."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and how probable the model found it, in nats, before penalties, biases and guides."""

    token: int
    logp: float
    top: tuple[tuple[int, float], ...] = ()
    """Most probable tokens at this place with their log-probabilities, the best first."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to one answer."""

    index: int
    """Number of the answer within its request."""
    text: str
    """Whole characters that are certain now; may be empty."""
    tokens: tuple[ScoredToken, ...]
    finish_reason: Literal["stop", "length", "abort"] | None = None
    """Set in the last piece of an answer."""
