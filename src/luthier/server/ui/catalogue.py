"""Templates of messages and what they are in Chinese; which ones may have made a text.

A template is a message with `{}` in each place where something was put in; `docs/make_messages.py` finds them in the
source. A translation has the same places: `{}` in their order, or `{1}` by number; `{1:word}` is a single word that is
translated by itself ("run"), `{1:list}` names with commas and "or" or "and" between them.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW_LETTERS, SHORT_LETTERS = 8, 5
WORD = re.compile(r"[A-Za-z]+")
QUOTED = re.compile(r"(?<!\w)'.*?'(?!\w)")
"""What a user wrote, as messages quote it."""
BETWEEN = re.compile(r"; |: |, |\. | \(|(?<=\?) (?=[A-Z])")
"""Where one message may follow another."""
_PLACE = re.compile(r"\{(\d*)(?::(word|list))?\}")
_WHERE, _WHERE_TOLD = re.compile(r"\{\}(:\{\})?: (?=[a-z`{])"), re.compile(r"\{\}(:\{\})?(: |\uff1a)")


@dataclass(frozen=True)
class Entry:
    """A template, and how it reads in another language."""

    template: str
    translation: str

    @cached_property
    def literals(self) -> list[str]:
        """Return the text around the places."""
        return self.template.split("{}")

    @cached_property
    def weight(self) -> int:
        """Return how many characters it holds a text to."""
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
        return all(self._open) and self._letters < FEW_LETTERS

    @cached_property
    def is_short(self) -> bool:
        """Tell whether it is a word with something beside it ("is 3"), which stands in many other texts, too."""
        few = self._letters < (SHORT_LETTERS if all(self._open) else FEW_LETTERS)
        return any(self._open) and few and len(WORD.findall(self.template)) == 1

    @cached_property
    def _letters(self) -> int:
        return sum(map(str.isalpha, self.template))

    @cached_property
    def _open(self) -> tuple[bool, bool]:
        return not self.literals[0].strip(), not self.literals[-1].strip()

    def is_torn(self, places: list[str]) -> bool:
        """Tell whether places hold parts of a message around this one: half a bracket, or a beginning with a colon."""
        bare = [QUOTED.sub("", place) for place in places]
        half = any(place.count("(") != place.count(")") for place in bare)
        return half or (bool(bare) and not self.literals[0] and ": " in bare[0])

    def words(self) -> Iterator[str]:
        """Yield the words that stand whole in every text of this template."""
        last = len(self.literals) - 1
        for number, literal in enumerate(self.literals):
            for word in WORD.finditer(literal):
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
                here = _find(text, literal, at, end)
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
    found = QUOTED.match(text, at, end) if end > 0 else None
    if found is not None:
        return found.end()
    mark = BETWEEN.search(text, at + 1, end) if end > 0 else None
    return end if mark is None else mark.start()


def _find(text: str, literal: str, at: int, end: int) -> int:
    """Return where a literal stands first, outside of quotes if it can; -1 where it does not."""
    first = here = text.find(literal, at, end)
    if here < 0 or "'" in literal:
        return here
    for begin, behind in quoted(text):
        if here < behind and begin < here:
            here = text.find(literal, behind, end)
            if here < 0:
                return first
    return here


@lru_cache(maxsize=64)
def quoted(text: str) -> list[tuple[int, int]]:
    """Return begin and end of everything in quotes."""
    return [each.span() for each in QUOTED.finditer(text)]


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


class Catalogue:
    """The lines of all templates, by the rarest of their words."""

    def __init__(self, entries: dict[str, str]) -> None:
        self.entries = entries
        lines = dict(line for entry in entries.items() for line in _lines(*entry) if WORD.search(line[0]))
        known = [Entry(*line) for line in ({**dict(_without_place(lines)), **lines}).items()]
        often = Counter(word for entry in known for word in set(entry.words()))
        self._by_word: dict[str, list[Entry]] = defaultdict(list)
        for entry in known:
            self._by_word[min(entry.words(), key=lambda word: (often[word], -len(word)), default="")].append(entry)

    def likely(self, text: str) -> list[Entry]:
        """Return the entries that a text may be made by, those that say most first."""
        words = {"", *WORD.findall(text)}
        found = [entry for word in words for entry in self._by_word.get(word, ())]
        return sorted(found, key=lambda entry: -entry.weight)


def _without_place(entries: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield templates that begin with a place and a line as they are where those are shown beside the message."""
    for template, translation in entries.items():
        found, told = _WHERE.match(template), _WHERE_TOLD.match(translation)
        if found is not None and told is not None and found[0].count("{}") == told[0].count("{}"):
            yield template[found.end() :], translation[told.end() :]


@cache
def catalogue() -> Catalogue:
    """Return the catalogue of all packages."""
    return Catalogue(messages())


@cache
def messages() -> dict[str, str]:
    """Return every template with its translation."""
    folder = files("luthier.server.ui").joinpath("words", "messages")
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".zh.json"):
            found |= json.loads(file.read_text(encoding="utf-8"))
    return found
