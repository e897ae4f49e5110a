"""What the server says, in the language of whoever asks.

Messages are written in English where they arise. They are turned into another language where they leave: catalogues
hold templates, a message with `{}` in each place where something was put in; `docs/make_messages.py` finds them in the
source. A translation has the same places: `{}` in their order, or `{1}` by number; `{1:word}` is a single word that is
translated by itself ("run"), `{1:list}` names with commas and "or" or "and" between them. What fits no template stays
as it is, and so do names, numbers and whatever else users wrote.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainSerializer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

Language = Literal["en", "zh"]
LONGEST = 20_000
"""Characters of a text that is looked at."""
DEEPEST = 6
"""Messages inside of messages."""
MOST_SPLITS = 16
LOOSE_LETTERS, SHORT_LETTERS = 8, 5
WORK = 30
"""Characters that are looked at for each one of a text."""
_language: ContextVar[Language] = ContextVar("language", default="en")
_PLACE = re.compile(r"\{(\d*)(?::(word|list))?\}")
_WORD = re.compile(r"[A-Za-z]+")
_BETWEEN = re.compile(r"; |: |, |\. | \(|\n")
"""Where one message may follow another."""
_WHERE, _WHERE_TOLD = re.compile(r"\{\}(:\{\})?: (?=[a-z`])"), re.compile(r"\{\}(:\{\})?(: |\uff1a)")
_QUOTED = re.compile(r"'[^'\n]*'")
_ROW = re.compile(r"[^:\n]+:\d+ ")
"""File and line in front of what is said about a row."""
_MARKS = {"; ": "；", ": ": "：", ", ": "，", ". ": "。"}  # noqa: RUF001
_LISTED = {" or ": " 或 ", " and ": " 和 ", ", ": "、"}
_LISTS = re.compile("|".join(_LISTED))


def language_of(accepted: str) -> Language:
    """Return the language that a header Accept-Language asks for first.

    >>> [language_of(each) for each in ("zh-CN,zh;q=0.9,en;q=0.8", "en-GB, zh", "")]
    ['zh', 'en', 'en']
    """
    return "zh" if accepted.strip().lower().startswith("zh") else "en"


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
    "这里没有名为 'violin' 的运行"
    """
    if (language or _language.get()) == "en" or len(text) > LONGEST:
        return text
    return _in_chinese(text)


def said_within(value: Any, keys: frozenset[str]) -> Any:
    """Return plain data, its texts under `keys` in the language of the request."""
    if isinstance(value, dict):
        return {
            key: said(each) if key in keys and isinstance(each, str) else said_within(each, keys)
            for key, each in value.items()
        }
    return [said_within(each, keys) for each in value] if isinstance(value, list) else value


Said = Annotated[str, PlainSerializer(said, return_type=str, when_used="json")]
"""A text for people: leaves in the language of the request."""


@lru_cache(maxsize=4096)
def _in_chinese(text: str) -> str:
    return _Saying(text).whole()


@dataclass(frozen=True)
class _Entry:
    """A template, and how it reads in another language."""

    template: str
    translation: str

    @cached_property
    def literals(self) -> list[str]:
        return self.template.split("{}")

    @cached_property
    def weight(self) -> int:
        return len(self.template) - 2 * (len(self.literals) - 1)

    @cached_property
    def parts(self) -> list[tuple[str, int, str]]:
        """Return what the translation is made of: text, then the number of a place and its kind; -1 at the end."""
        found: list[tuple[str, int, str]] = []
        end = 0
        for number, place in enumerate(_PLACE.finditer(self.translation)):
            found.append((self.translation[end : place.start()], int(place[1] or number), place[2] or ""))
            end = place.end()
        return [*found, (self.translation[end:], -1, "")]

    @cached_property
    def is_loose(self) -> bool:
        """Tell whether it fits too much: few letters, and anything at either side of them."""
        open_ended = not self.literals[0].strip() and not self.literals[-1].strip()
        return open_ended and sum(map(str.isalpha, self.template)) < LOOSE_LETTERS

    @cached_property
    def is_short(self) -> bool:
        """Tell whether it is a word with something behind it ("is 3"), which begins many other texts, too."""
        return not self.literals[-1] and sum(map(str.isalpha, self.template)) < SHORT_LETTERS

    def is_torn(self, places: list[str]) -> bool:
        """Tell whether places hold parts of a message around this one: half a bracket, or a beginning with a colon."""
        bare = [_QUOTED.sub("", place) for place in places]
        half = any(place.count("(") != place.count(")") for place in bare)
        return half or (bool(bare) and not self.literals[0] and ": " in bare[0])

    def words(self) -> Iterator[str]:
        """Yield the words that stand whole in every text of this template."""
        last = len(self.literals) - 1
        for number, literal in enumerate(self.literals):
            for word in _WORD.finditer(literal):
                begins = word.start() > 0 or number == 0
                ends = word.end() < len(literal) or number == last
                if begins and ends:
                    yield word[0]

    def places(self, text: str) -> list[str] | None:
        """Return what stands in the places of a text of this template; None for other texts. Takes linear time."""
        first, *between = self.literals
        if not between:
            return [] if text == first else None
        last = between.pop()
        at, end = len(first), len(text) - len(last)
        if at > end or not text.startswith(first) or not text.endswith(last):
            return None
        found: list[str] = []
        for number, literal in enumerate(between):
            if literal:
                here = text.find(literal, at, end)
            else:
                follows = next(filter(None, between[number + 1 :]), "")
                here = _cut(text, at, text.find(follows, at, end) if follows else end)
            if here < 0:
                return None
            found.append(text[at:here])
            at = here + len(literal)
        return [*found, text[at:end]]


def _cut(text: str, at: int, end: int) -> int:
    """Return where the first of two neighbouring places ends: behind its quotes, or where a new part begins."""
    found = _QUOTED.match(text, at, end) if end > 0 else None
    if found is not None:
        return found.end()
    mark = _BETWEEN.search(text, at, end) if end > 0 else None
    return end if mark is None else mark.start()


def _lines(template: str, translation: str) -> Iterator[tuple[str, str]]:
    """Yield a template line by line, each with its translation, whose places count from the first one of the line."""
    if "\n" not in template:
        yield template, translation
        return
    running, before = count(), 0
    for line, into in zip(template.split("\n"), translation.split("\n"), strict=True):
        parts, end = list[str](), 0
        for place in _PLACE.finditer(into):
            kind = f":{place[2]}" if place[2] else ""
            parts += [into[end : place.start()], f"{{{int(place[1] or next(running)) - before}{kind}}}"]
            end = place.end()
        yield line.strip(), "".join([*parts, into[end:]]).strip()
        before += line.count("{}")


class _Catalogue:
    """The lines of all templates, by the rarest of their words."""

    def __init__(self, entries: dict[str, str]) -> None:
        self.entries = entries
        lines = dict(line for entry in entries.items() for line in _lines(*entry) if _WORD.search(line[0]))
        known = [_Entry(*line) for line in ({**dict(_without_place(lines)), **lines}).items()]
        often = Counter(word for entry in known for word in set(entry.words()))
        self._by_word: dict[str, list[_Entry]] = defaultdict(list)
        for entry in known:
            self._by_word[min(entry.words(), key=lambda word: (often[word], -len(word)), default="")].append(entry)

    def likely(self, text: str) -> list[_Entry]:
        """Return the entries that a text may be made by, those that say most first."""
        words = {"", *_WORD.findall(text)}
        found = [entry for word in words for entry in self._by_word.get(word, ())]
        return sorted(found, key=lambda entry: -entry.weight)


class _Saying:
    """One text on its way into the other language; stops looking when it has cost enough."""

    def __init__(self, text: str) -> None:
        self._text, self._known = text, _catalogue()
        self._left = WORK * (len(text) + 100)

    def whole(self) -> str:
        """Return the text in the other language as far as it, or parts of it, are known."""
        lines = self._text.split("\n")
        return "\n".join(line[: -len(told)] + self._of(told, 0) if (told := line.lstrip()) else line for line in lines)

    def _of(self, text: str, depth: int) -> str:
        if depth > DEEPEST or self._left < 0 or not _WORD.search(text):
            return text
        return self._made(text, depth) or self._apart(text, depth) or self._made(text, depth, loose=True) or text

    def _made(self, text: str, depth: int, *, loose: bool = False) -> str | None:
        """Return a text that one template makes; None where there is none."""
        self._left -= len(text)
        torn: tuple[_Entry, list[str]] | None = None
        for entry in self._known.likely(text):
            places = entry.places(text) if entry.is_loose == loose else None
            if places is None or (entry.is_short and any(map(self._is_strange, places))):
                continue
            if not entry.is_torn(places):
                return self._filled(entry, places, depth)
            torn = torn or (entry, places)
        return self._filled(*torn, depth) if torn else None

    def _filled(self, entry: _Entry, places: list[str], depth: int) -> str:
        return "".join(
            literal + (self._place(places[number], kind, depth) if number >= 0 else "")
            for literal, number, kind in entry.parts
        )

    def _is_strange(self, text: str) -> bool:
        """Tell whether several words are no message: then a short template has taken them for something else."""
        return " " in _QUOTED.sub("", text) and self._made(text, DEEPEST) is None

    def _place(self, text: str, kind: str, depth: int) -> str:
        if kind == "word":
            return self._known.entries.get(text, text)
        if kind == "list":
            return _LISTS.sub(lambda found: _LISTED[found[0]], text)
        if _QUOTED.fullmatch(text) or " " not in text.strip():
            return text  # what a user wrote
        return self._of(text, depth + 1)

    def _apart(self, text: str, depth: int) -> str | None:
        """Return a text whose end or beginning one template makes, with the rest of it; None where there is none."""
        row = _ROW.match(text)
        if row is not None and (told := self._of(text[row.end() :], depth + 1)) != text[row.end() :]:
            return row[0] + told
        blank = text.find(" ")
        cuts = [(each.start(), each.end(), each[0]) for each in _BETWEEN.finditer(text)][:MOST_SPLITS]
        for begin, end, mark in [*cuts, *([(blank, blank + 1, " ")] if blank > 0 else [])]:
            for start, joint in ((begin, ""), (end, _MARKS.get(mark, mark))):
                tail = self._made(text[start:], depth + 1) if start and self._left > 0 else None
                if tail is not None:
                    return self._of(text[:begin], depth + 1) + joint + tail
        for begin, end, mark in reversed(cuts):
            head = self._made(text[:begin], depth + 1) if begin and self._left > 0 else None
            if head is not None:
                return head + _MARKS.get(mark, mark) + text[end:]
        return None


def _without_place(entries: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield templates that begin with a place and a line as they are where those are shown beside the message."""
    for template, translation in entries.items():
        found, told = _WHERE.match(template), _WHERE_TOLD.match(translation)
        if found is not None and told is not None and found[0].count("{}") == told[0].count("{}"):
            yield template[found.end() :], translation[told.end() :]


@cache
def _catalogue() -> _Catalogue:
    return _Catalogue(messages())


@cache
def messages() -> dict[str, str]:
    """Return every template with its translation."""
    folder = files("luthier.server.ui").joinpath("words", "messages")
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".zh.json"):
            found |= json.loads(file.read_text(encoding="utf-8"))
    return found
