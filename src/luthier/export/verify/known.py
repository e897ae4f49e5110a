"""What llama.cpp's tokenizers do otherwise than the originals with every file of a kind: no fault of a file."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.export.verify.llama import Llama

if TYPE_CHECKING:
    from collections.abc import Callable

_ASCII_PATTERNS = ("gpt-4o", "tekken", "llama4")
_BLANKS = re.compile("▁+")


@dataclass(frozen=True, slots=True)
class Known:
    """Tells whether a difference is one that every file with such a tokenizer has."""

    server: Llama
    tokenizer: Any
    pre: str
    """Name of the file's pre-tokenizer."""

    def reason(self, text: str, ours: list[int], theirs: list[int]) -> str | None:
        """Return what llama.cpp does that makes the ids of a text differ, or None."""
        return next((reason for reason, is_so in _REASONS.items() if is_so(self, text, ours, theirs)), None)

    @property
    def puts_blank(self) -> bool:
        """Tell whether text gets a blank in front."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        return bool(tokens) and tokens[0].startswith("▁")

    def ids(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return llama.cpp's ids of a text."""
        return self.server.ask("tokenize", texts=[text], add_special=False, parse_special=parse_special)[0]

    def says_same(self, one: list[int], other: list[int]) -> bool:
        """Tell whether ids that differ are the same text."""
        texts = self.server.ask("detokenize", ids=[one, other])
        return texts[0] == texts[1]

    def tokens(self, ids: list[int]) -> str:
        """Return the tokens of a text in a row, each run of blanks as one."""
        return _BLANKS.sub("▁", "".join(map(str, self.tokenizer.convert_ids_to_tokens(ids)))).strip("▁")


def _composes(known: Known, text: str, ours: list[int], theirs: list[int]) -> bool:
    composed = unicodedata.normalize("NFC", text)
    return composed != text and known.ids(composed) == ours


def _looks_special(known: Known, text: str, ours: list[int], theirs: list[int]) -> bool:
    return known.ids(text, parse_special=False) == ours


def _second_blank(known: Known, text: str, ours: list[int], theirs: list[int]) -> bool:
    if not known.puts_blank:
        return False
    control = set(known.tokenizer.all_special_tokens)
    there = text.startswith((" ", "▁")) or any(token in text for token in control)
    one, other = known.tokens(ours), known.tokens(theirs)
    for token in control:
        one, other = (re.sub(f"▁*{re.escape(token)}▁*", token, each) for each in (one, other))
    return there and one == other


def _splits_scripts(known: Known, text: str, ours: list[int], theirs: list[int]) -> bool:
    unusual = any(unicodedata.category(c)[0] == "M" or (ord(c) > 127 and c.isalpha()) for c in text)
    return known.pre in _ASCII_PATTERNS and unusual and known.says_same(ours, theirs)


def _tilde(known: Known, text: str, ours: list[int], theirs: list[int]) -> bool:
    return known.pre == "deepseek-v3" and "~" in text and known.says_same(ours, theirs)


_REASONS: dict[str, Callable[[Known, str, list[int], list[int]], bool]] = {
    "does not compose accents": _composes,
    "takes text that looks like a special token for one": _looks_special,
    "puts a blank in front also where one is": _second_blank,
    "splits scripts with other letters than ASCII in another way": _splits_scripts,
    "splits at a tilde in another way": _tilde,
}
