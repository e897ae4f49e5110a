"""Tokens to text as it grows: whole characters only, and never a piece of a stop text."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return the part of `text` in front of the first stop text.

    >>> cut_at("one two three", ["three", "two"])
    'one '
    """
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


class TextStream:
    """Hands out the text of a growing answer. Characters of several tokens wait until they are whole."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._tokens: list[int] = []
        self._before, self._read = 0, 0
        self._text = ""
        self._given = 0
        self._ends: list[int] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Return everything so far, cut in front of a stop text."""
        return self._text

    @property
    def num_certain(self) -> int:
        """Return how many tokens have given out all of their text; one that a stop text begins in never does."""
        return bisect_right(self._ends, self._given)

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain now."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._before : self._read])
        longer = self._decode(self._tokens[self._before :])
        if not longer.endswith("\N{REPLACEMENT CHARACTER}"):
            self._add(longer[len(known) :])
            self._before, self._read = self._read, len(self._tokens)
        return self._give(len(self._text) - self._held())

    def finish(self) -> str:
        """Return what is left."""
        if not self.stopped and self._read < len(self._tokens):
            known = self._decode(self._tokens[self._before : self._read])
            self._add(self._decode(self._tokens[self._before :])[len(known) :])
        return self._give(len(self._text))

    def _add(self, text: str) -> None:
        self._text += text
        self._ends.extend([len(self._text)] * (len(self._tokens) - len(self._ends)))

    def _give(self, end: int) -> str:
        cut = cut_at(self._text, self._stops)
        if len(cut) < len(self._text):
            self.stopped, end, self._text = True, len(cut), cut
        part = self._text[self._given : end]
        self._given = max(self._given, end)
        return part

    def _held(self) -> int:
        """Return how many characters at the end may begin a stop text."""
        most = max((len(stop) for stop in self._stops), default=1) - 1
        ends = (self._text[-size:] for size in range(min(most, len(self._text)), 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self._stops)), 0)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""
