"""Answers that are tagged good or bad, and answers to other prompts beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import DataError
from luthier.data.cut import learned_range
from luthier.data.store import StoreBuilder, UnitStore, hash_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Example, Segment
    from luthier.data.audit import AuditReport

DESIRABLE = "desirable"
"""Tag: 1.0 for a good answer, 0.0 for a bad one."""


def one_by_one(example: Example) -> list[Example]:
    """Return the answers of a row as examples: chosen and rejected of a pair become a good and a bad one."""
    if len(example.endings) < 2:
        return [example]
    return [
        replace(example, endings=(ending,), desirable=good)
        for ending, good in zip(example.endings, (True, False), strict=True)
    ]


def with_mismatches(store: UnitStore, limit: int) -> UnitStore:
    """Return the units with, set aside, the answer of the next row with another prompt and answer behind this prompt.

    Where all prompts are the same, another answer is enough; the last rows go on with the first. Answers are cut to
    `limit` tokens in all. Raises DataError when all answers are the same.
    """
    builder = StoreBuilder()
    for index, other in enumerate(_partners(store)):
        (segment,), (theirs,) = store[index], store[other]
        builder.add([segment, _mismatched(segment, theirs, limit)], int(store.source_index[index]))
    return builder.build()


def _mismatched(segment: Segment, other: Segment, limit: int) -> Segment:
    prompt, (first, last) = learned_range(segment)[0], learned_range(other)
    tokens = [*segment.tokens[:prompt], *other.tokens[first:last]]
    weight = [0.0] * prompt + other.weight[first:last]
    return replace(segment, tokens=tokens[:limit], weight=weight[:limit], aside=True)


def _partners(store: UnitStore) -> list[int]:
    """Return for each unit the one whose answer is put behind its prompt."""
    answers = np.array([_answer_hash(segment) for (segment,) in store], dtype=np.int64)
    prompts = store.context_hash if len(np.unique(store.context_hash)) > 1 else np.arange(len(store))
    if len(np.unique(answers)) < 2:
        raise DataError(
            "all answers are the same, but this objective compares with answers to other prompts; "
            "add rows with other answers",
            code="data_empty",
        )
    steps = _next_other(answers), _next_other(prompts)
    return [_partner(index, answers, prompts, steps) for index in range(len(store))]


def _partner(index: int, answers: np.ndarray, prompts: np.ndarray, steps: tuple[Sequence[int], Sequence[int]]) -> int:
    other = (index + 1) % len(answers)
    for _ in range(len(answers)):
        if answers[other] == answers[index]:
            other = steps[0][other]
        elif prompts[other] == prompts[index]:
            other = steps[1][other]
        else:
            return other
    return steps[0][index]  # other prompts have this very answer only


def _next_other(values: np.ndarray) -> list[int]:
    """Return for each place the next one with another value, going on at the beginning."""
    number = len(values)
    found = [0] * number
    for index in reversed(range(2 * number)):
        here, after = index % number, (index + 1) % number
        found[here] = after if values[after] != values[here] else found[after]
    return found


def _answer_hash(segment: Segment) -> int:
    first, last = learned_range(segment)
    return hash_tokens(segment.tokens[first:last])


def check_both_sides(store: UnitStore, report: AuditReport) -> None:
    """Warn when all answers are good, or all bad."""
    good = store.tags[DESIRABLE] > 0
    if good.all() or not good.any():
        which, other = ("desirable", "undesirable") if good.all() else ("undesirable", "desirable")
        message = f"and all other {len(store) - 1} answers are {which}; without any {other} one, little is learned"
        report.add("one_sided", "warning", str(store.origins[0]), message)
