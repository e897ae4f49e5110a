"""What an answer says, told apart as it grows: thoughts, text, calls of tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luthier.data.chat_format import THINK
from luthier.engines.text import TextStream

if TYPE_CHECKING:
    from collections.abc import Collection

    from luthier.engines.shaping import Piece
    from luthier.server.calls import CallReader


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


class Ear(Protocol):
    """Hears the text of one answer."""

    def hear(self, text: str, *, last: bool) -> Said:
        """Take text and return what is certain now; everything when it is the last."""
        ...


class PlainEar:
    """Text is text."""

    def hear(self, text: str, *, last: bool) -> Said:
        """Return the text."""
        return Said(text)


def held_back(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` may begin `marker`.

    >>> held_back("a < b <thi", "<think>")
    4
    """
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((size for size in sizes if marker.startswith(text[-size:])), 0)


class CallEar:
    """Tells calls from text. They are told when the answer has ended: until then they may turn out to be none."""

    def __init__(self, reader: CallReader, *, many: bool) -> None:
        self._reader, self._many = reader, many
        self._held = ""
        self._found, self._plain = False, False

    def hear(self, text: str, *, last: bool) -> Said:
        """Take text and return what is certain now."""
        self._held += text
        front = "" if self._found else self._front()
        if not last:
            return Said(front)
        calls, rest = self._reader.read(self._held) if self._found else ([], self._held)
        self._held = ""
        return Said(front + rest, calls=tuple(calls if self._many else calls[:1]))

    def _front(self) -> str:
        """Take the text that is certainly in front of calls."""
        marker = self._reader.marker
        if self._plain:
            return self._take(len(self._held))
        if not marker:
            begins = self._reader.begins(self._held.lstrip())
            self._found, self._plain = begins is True, begins is False
            return self._take(len(self._held)) if self._plain else ""
        place = self._held.find(marker)
        if place < 0:
            certain = self._held[: len(self._held) - held_back(self._held, marker)]
            # Blanks in front of a call are no part of the text.
            return self._take(len(certain.rstrip()))
        self._found = True
        return self._take(place).rstrip()

    def _take(self, size: int) -> str:
        front, self._held = self._held[:size], self._held[size:]
        return front


class ThoughtEar:
    """Tells a thought at the beginning from what follows, which `behind` hears."""

    def __init__(self, behind: Ear, *, opened: bool) -> None:
        self._behind = behind
        self._held = ""
        self._inside, self._over = opened, False
        self._spoken = self._answered = False

    def hear(self, text: str, *, last: bool) -> Said:
        """Take text and return what is certain now."""
        if self._over:
            return self._answer(text, last=last)
        self._held += text
        opening, closing = THINK
        if not self._inside:
            start = self._held.lstrip()
            if start.startswith(opening):
                self._inside, self._held = True, start.removeprefix(opening)
            elif last or not opening.startswith(start):
                self._over = self._answered = True
                return self._behind.hear(self._held, last=last)
            else:
                return Said()
        thought, found, rest = self._held.partition(closing)
        if found:
            self._over, self._held = True, ""
            said = self._answer(rest, last=last)
            return Said(said.content, self._thought(thought.rstrip()), said.calls)
        held = 0 if last else held_back(self._held, closing)
        certain = self._held[: len(self._held) - held]
        certain = certain if last else certain[: len(certain.rstrip())]
        self._held = self._held[len(certain) :]
        return Said(reasoning=self._thought(certain))

    def _thought(self, text: str) -> str:
        if not self._spoken:
            text = text.lstrip()
            self._spoken = bool(text)
        return text

    def _answer(self, text: str, *, last: bool) -> Said:
        """Hear what stands behind a thought, without the blanks in between."""
        if not self._answered:
            text = text.lstrip("\n")
            self._answered = bool(text)
        return self._behind.hear(text, last=last)


class _Spelling:
    """Decodes tokens with some of the special ones spelled out."""

    def __init__(self, tokenizer: Any, silent: Collection[int]) -> None:
        self._tokenizer, self._silent = tokenizer, silent

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens."""
        shown = [token for token in tokens if token not in self._silent]
        return self._tokenizer.decode(shown, skip_special_tokens=False)


class Listener:
    """Hears the pieces of one answer. Special tokens that mark calls or thoughts are text to it."""

    def __init__(self, ear: Ear, tokenizer: Any = None, silent: Collection[int] = ()) -> None:
        self._ear = ear
        self._stream = None if tokenizer is None else TextStream(_Spelling(tokenizer, silent))

    def hear(self, piece: Piece) -> Said:
        """Take a piece and return what is certain now; everything when it is the last."""
        last = piece.finish_reason is not None
        if self._stream is None:
            return self._ear.hear(piece.text, last=last)
        text = "".join(self._stream.push(token.token) for token in piece.tokens)
        return self._ear.hear(text + (self._stream.finish() if last else ""), last=last)
