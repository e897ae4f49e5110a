"""What the server says, in the language of whoever asks.

Messages are written in English where they arise, and turned into another language where they leave (`catalogue.py`
holds the templates). What fits no template stays as it is, and so do names, numbers and whatever else users wrote.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainSerializer

from luthier.server.ui.catalogue import BETWEEN, QUOTED, WORD, catalogue, quoted

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from luthier.server.ui.catalogue import Entry

Language = Literal["en", "zh"]
LONGEST = 20_000
"""Characters of a text that is looked at."""
KEPT = 1000
"""Characters of a text whose translation is kept."""
DEEPEST = 6
"""Messages inside of messages."""
MOST_SPLITS = 16
WORK = 30
"""Characters that are looked at for each one of a text."""
_ROW = re.compile(r"[^:\n]+:\d+ ")
"""File and line in front of what is said about a row."""
_MARKS = {"; ": "；", ": ": "：", ", ": "，", ". ": "。"}  # noqa: RUF001  Chinese writes them wide
_LISTED = {" or ": " 或 ", " and ": " 和 ", ", ": "、"}
_LISTS = re.compile(f"({QUOTED.pattern}|{'|'.join(_LISTED)})")
_language: ContextVar[Language] = ContextVar("language", default="en")


def language_of(accepted: str) -> Language:
    """Return the language that a header Accept-Language asks for first.

    >>> [language_of(each) for each in ("zh-CN,zh;q=0.9,en;q=0.8", "en-GB, zh", "")]
    ['zh', 'en', 'en']
    """
    first = accepted.partition(",")[0].partition(";")[0]
    return "zh" if first.strip().lower().partition("-")[0] == "zh" else "en"


@contextmanager
def speaking(language: Language) -> Generator[None]:
    """Let everything that leaves meanwhile be said in a language."""
    before = _language.set(language)
    try:
        yield
    finally:
        _language.reset(before)


def said(text: str, language: Language | None = None) -> str:
    """Return a message in a language, without one in that of the request.

    >>> said("there is no run called 'violin' here", "zh")
    "这里没有名为 'violin' 的训练"
    """
    if (language or _language.get()) == "en" or len(text) > LONGEST:
        return text
    return _in_chinese(text) if len(text) <= KEPT else _Saying(text).whole()


CHECKED = frozenset({"found", "limit", "message", "notes"})
"""Parts of what a command printed that are for people, such as those of a check of an export."""
REPORTED = CHECKED | {"name"}
"""Parts of a report of checks."""


def said_within(value: Any, keys: frozenset[str], *, here: bool = False) -> Any:
    """Return plain data, its texts under `keys` in the language of the request. `here`: it stands under one itself."""
    if isinstance(value, dict):
        return {key: said_within(each, keys, here=key in keys) for key, each in value.items()}
    if isinstance(value, list):
        return [said_within(each, keys, here=here) for each in value]
    return said(value) if here and isinstance(value, str) else value


def said_of(template: str, *parts: str) -> str:
    """Return a template in the language of the request, filled with parts as they are."""
    return (template if _language.get() == "en" else catalogue().entries[template]).format(*parts)


Said = Annotated[str, PlainSerializer(said, return_type=str, when_used="json")]
"""A text for people: leaves in the language of the request."""


@lru_cache(maxsize=4096)
def _in_chinese(text: str) -> str:
    return _Saying(text).whole()


class _Saying:
    """One text on its way into the other language; stops looking when it has cost enough."""

    def __init__(self, text: str) -> None:
        self._text, self._known = text, catalogue()
        self._left = WORK * (len(text) + 100)

    def whole(self) -> str:
        """Return the text in the other language as far as it, or parts of it, are known."""
        lines = self._text.split("\n")
        return "\n".join(line[: -len(told)] + self._of(told, 0) if (told := line.lstrip()) else line for line in lines)

    def _of(self, text: str, depth: int) -> str:
        if depth > DEEPEST or self._left < 0 or not WORD.search(text):
            return text
        return self._made(text, depth) or self._apart(text, depth) or self._made(text, depth, loose=True) or text

    def _made(self, text: str, depth: int, *, loose: bool = False) -> str | None:
        """Return a text that one template makes, the one that says most; None where there is none."""
        self._left -= len(text)
        torn: tuple[Entry, list[str]] | None = None
        for entry in self._known.likely(text):
            places = entry.places(text) if entry.is_loose == loose else None
            if places is None or (entry.is_short and any(map(self._is_strange, places))):
                continue
            if not entry.is_torn(places):
                return self._filled(entry, places, depth)
            torn = torn or (entry, places)
        return self._filled(*torn, depth) if torn else None

    def _filled(self, entry: Entry, places: list[str], depth: int) -> str:
        return "".join(
            literal + (self._place(places[number], kind, depth) if number >= 0 else "")
            for literal, number, kind in entry.parts
        )

    def _is_strange(self, text: str) -> bool:
        """Tell whether it is no number, no name and no message: then a short template has taken it for something."""
        plain = QUOTED.sub("", text)
        if " " not in plain:
            return plain.isalpha() and plain not in self._known.entries
        return self._made(text, DEEPEST) is None

    def _place(self, text: str, kind: str, depth: int) -> str:
        known = self._known.entries
        if kind == "list":
            return "".join(_LISTED.get(part, known.get(part, part)) for part in _LISTS.split(text))
        if kind == "word" and text in known:
            return known[text]
        if " " not in text.strip() or quoted(text) == [(0, len(text))]:
            return text  # what a user wrote
        return self._of(text, depth + 1)

    def _before(self, text: str, depth: int) -> str:
        return self._of(text, depth + 1) if " " in text else text  # a single word is a name there

    def _apart(self, text: str, depth: int) -> str | None:
        """Return a text whose end or beginning one template makes, with the rest of it; None where there is none."""
        row = _ROW.match(text)
        if row is not None and (told := self._of(text[row.end() :], depth + 1)) != text[row.end() :]:
            return row[0] + told
        blank = text.find(" ")
        cuts = list(islice(_cuts(text), MOST_SPLITS))
        for begin, end, mark in [*cuts, *([(blank, blank + 1, " ")] if blank > 0 else [])]:
            for start, joint in ((begin, ""), (end, _MARKS.get(mark, mark))):
                tail = self._made(text[start:], depth + 1) if start and self._left > 0 else None
                if tail is not None:
                    return self._before(text[:begin], depth) + joint + tail
        for begin, end, mark in reversed(cuts):
            head = self._made(text[:begin], depth + 1) if begin and self._left > 0 else None
            if head is not None:
                return head + _MARKS.get(mark, mark) + text[end:]
        return None


def _cuts(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield begin, end and text of what may stand between two messages; none within quotes."""
    spans = list(quoted(text))
    for each in BETWEEN.finditer(text):
        while spans and spans[0][1] <= each.start():
            spans.pop(0)
        if not spans or each.start() < spans[0][0]:
            yield each.start(), each.end(), each[0]
