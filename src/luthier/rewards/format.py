"""Does the answer have the form that was asked for?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.config.schema import Names
from luthier.core.registry import REWARDS
from luthier.rewards.regex import check_pattern

if TYPE_CHECKING:
    from luthier.core.types import Answer


@REWARDS.register("format")
@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """1 where the answer is made of the tags, one after the other and each once, or matches a pattern; 0 elsewhere."""

    tags: Names = ("think", "answer")
    """The answer is <think>...</think><answer>...</answer>, and nothing but blanks outside."""
    opened: bool = False
    """The prompt ends with the first opening tag, so that the answer begins inside it."""
    text_after: bool = False
    """Text may follow the last tag: for tags: think."""
    not_empty: bool = True
    """Something other than blanks stands in each tag, and in the text after."""
    pattern: str = ""
    """A regular expression that the whole answer must match, instead of tags."""

    def __post_init__(self) -> None:
        check_pattern(self.pattern, "pattern")
        if not self.pattern and not self.tags:
            raise ValueError("format needs tags or a pattern")

    @property
    def may_hang(self) -> bool:
        """Tell whether a pattern of the user's is matched."""
        return bool(self.pattern)

    def __call__(self, answer: Answer) -> float:
        """Return 1.0 or 0.0."""
        text = answer.completion.text
        if self.pattern:
            return float(re.fullmatch(self.pattern, text.strip(), re.DOTALL) is not None)
        return float(self._is_made_of_tags(f"<{self.tags[0]}>{text}" if self.opened else text))

    def _is_made_of_tags(self, text: str) -> bool:
        rest = text
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if text.count(opening) != 1 or text.count(closing) != 1:
                return False
            before, found, rest = rest.partition(opening)
            inside, ended, rest = rest.partition(closing)
            if before.strip() or not found or not ended or (self.not_empty and not inside.strip()):
                return False
        return bool(rest.strip()) or not self.not_empty if self.text_after else not rest.strip()
