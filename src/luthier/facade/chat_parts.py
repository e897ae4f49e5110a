"""What a chat template writes in front of questions and answers, and which tokens of a row are answers by that."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import jinja2

from luthier.core.log import printable
from luthier.facade.chat import PARTS
from luthier.facade.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

MASKED = -100
_QUESTIONS, _ANSWERS = ("qUSR0q", "qUSR1q"), ("qANS0q", "qANS1q")
_SPACES = " Ġ▁"
"""How tokenizers write a space."""
MOST_COMPARED = 4000
"""Characters of a row in which the text nearest to a marker is looked for."""


def parts_of(tokenizer: Any) -> tuple[str, str]:
    """Return what stands in front of a question and in front of an answer.

    Raises ArgumentError where the chat template says neither.
    """
    kept = getattr(tokenizer, PARTS, None)
    if kept is not None:
        return kept
    if not tokenizer.chat_template:
        raise ArgumentError(
            "the tokenizer has no chat template in which instruction_part and response_part could be found; give both, "
            "or a template with get_chat_template"
        )
    turns = [text for pair in zip(_QUESTIONS, _ANSWERS, strict=True) for text in pair]
    try:
        whole, asked = _rendered(tokenizer, turns), _rendered(tokenizer, turns[:1], ask=True)
        plain = _rendered(tokenizer, turns[:1])
        head, question, again = _between(whole, turns)
    except (ValueError, TypeError, jinja2.TemplateError) as error:
        raise ArgumentError(
            f"the chat template does not show what stands in front of answers ({error}); give instruction_part and "
            "response_part"
        ) from error
    asks = asked.removeprefix(plain) if asked.startswith(plain) else ""
    closing, found, _ = question.rpartition(asks) if asks else ("", "", "")
    if not found:  # the end of a question asks for the answer
        closing, asks = "", question
    instruction = _shared_end(head, again, [token.content for token in tokenizer.added_tokens_decoder.values()])
    if closing and len(instruction) > len(closing):
        instruction = instruction.removeprefix(closing)
    if not instruction.strip() or not asks.strip():
        raise ArgumentError(
            "the chat template writes nothing in front of a turn; give instruction_part and response_part"
        )
    return instruction, asks


def _rendered(tokenizer: Any, texts: Sequence[str], *, ask: bool = False) -> str:
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)


def _between(text: str, turns: Sequence[str]) -> tuple[str, str, str]:
    """Return what stands in front of the first question, between it and its answer, and in front of the next one."""
    places = [text.index(turn) for turn in turns]
    if places != sorted(places):
        raise ValueError("it changes the order of turns")
    ends = [place + len(turn) for place, turn in zip(places, turns, strict=True)]
    return text[: places[0]], text[ends[0] : places[1]], text[ends[1] : places[2]]


def _shared_end(one: str, other: str, control: Sequence[str]) -> str:
    """Return the text that both end with; no control token is cut."""
    shared = common_start(one[::-1], other[::-1])[::-1]
    while any(_cuts(text, len(text) - len(shared), token) for text in (one, other) for token in control):
        shared = shared[1:]
    return shared


def common_start(one: str, other: str) -> str:
    """Return the text that both begin with."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:same]


def _cuts(text: str, place: int, token: str) -> bool:
    """Tell whether a place lies inside a token of the text."""
    begin = text.find(token, max(0, place - len(token) + 1))
    return 0 <= begin < place < begin + len(token)


# ---- tokens


@dataclass(frozen=True)
class Markers:
    """Finds answers in rows of tokens by the texts in front of questions and answers."""

    tokenizer: Any
    instruction: str
    response: str
    last_only: bool = False

    @cached_property
    def raw(self) -> tuple[str, str]:
        """Return both parts as the tokenizer's own words write them: bytes and spaces have letters of their own there.

        Spaces in front are left out: some tokenizers write one more where a text begins.
        """
        one, other = (
            "".join(self.tokenizer.convert_ids_to_tokens(self.tokenizer(part, add_special_tokens=False)["input_ids"]))
            for part in (self.instruction, self.response)
        )
        return one.lstrip(_SPACES), other.lstrip(_SPACES)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the ranges of tokens that are answers: from behind a response part to the next instruction part.

        A token that is partly marker is none, unless that part is a space.
        """
        words = self.tokenizer.convert_ids_to_tokens(list(ids))
        ends = list(accumulate(len(word) for word in words))
        starts, text, found = [0, *ends[:-1]], "".join(words), list[tuple[int, int]]()
        instruction, response = self.raw
        spaces = len(response) - len(response.rstrip(_SPACES))
        place = text.find(response)
        while place >= 0:
            begin = place + len(response)
            stop = text.find(instruction, begin)
            stop = len(text) if stop < 0 else stop
            inside = range(begin - spaces, begin)
            first = bisect_left(starts, begin)
            first -= first > 0 and starts[first - 1] in inside and ends[first - 1] > begin
            last = bisect_right(ends, stop)
            if last > first:
                found.append((first, last))
            place = text.find(response, stop)
        return found[-1:] if self.last_only else found

    def labels(self, ids: Sequence[int], known: Sequence[int] | None = None) -> list[int]:
        """Return the labels of a row; `known`: labels that it has, whose masked tokens stay masked."""
        source, made = ids if known is None else known, [MASKED] * len(ids)
        for begin, end in self.spans(ids):
            made[begin:end] = source[begin:end]
        return made

    def missing(self, rows: Sequence[Sequence[int]]) -> str:
        """Say which marker none of the rows has, with the nearest text that the first row has."""
        texts = ["".join(self.tokenizer.convert_ids_to_tokens(list(ids))) for ids in rows]
        parts = {"instruction_part": self.instruction, "response_part": self.response}
        absent = {
            name: part
            for (name, part), raw in zip(parts.items(), self.raw, strict=True)
            if not any(raw in text for text in texts)
        }
        if not absent:
            return f"nothing stands behind response_part {printable(self.response)}: the rows end there, cut perhaps"
        shown = self.tokenizer.decode(list(rows[0]))
        said = [f"{name} {printable(part)} is in no row; nearest: {printable(nearest(part, shown))}"
                for name, part in absent.items()]  # fmt: skip
        return "; ".join(said)


def nearest(part: str, text: str) -> str:
    """Return the piece of `text` that is most like `part`.

    >>> nearest("### Answer:", "a question\\n### Response: 7")
    '### Respons'
    """
    matcher = SequenceMatcher(None, "", part, autojunk=False)
    best, likeness = text[: len(part)], 0.0
    for start in range(max(1, min(len(text), MOST_COMPARED) - len(part) + 1)):
        piece = text[start : start + len(part)]
        matcher.set_seq1(piece)
        if matcher.real_quick_ratio() > likeness and matcher.quick_ratio() > likeness and matcher.ratio() > likeness:
            best, likeness = piece, matcher.ratio()
    return best
