"""What an answer says, told apart as it grows: thoughts, text, calls of tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from luthier.engines.shaping import Piece


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model calls, with its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """What one piece adds."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


class Listener(Protocol):
    """Hears the pieces of one answer."""

    def hear(self, piece: Piece) -> Said:
        """Take a piece and return what is certain now; everything when it is the last."""
        ...


class PlainListener:
    """Text is text."""

    def hear(self, piece: Piece) -> Said:
        """Return the text of the piece."""
        return Said(piece.text)


@dataclass(slots=True)
class Whole:
    """An answer put together from its pieces."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list[Call])

    def add(self, said: Said) -> None:
        """Add what one piece said."""
        self.content += said.content
        self.reasoning += said.reasoning
        self.calls += said.calls
