"""Prompts of rollouts: every row checked and tokenized once, and read in an order that is f(seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import DataError
from luthier.core.types import Example
from luthier.data.audit import AuditReport
from luthier.data.rows import check_kind
from luthier.data.sources import find_sources, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luthier.data.loader import Cursor
    from luthier.data.prepare import Preparer


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt and what its answers are graded with."""

    example: Example
    tokens: tuple[int, ...]


def read_prompts(names: tuple[str, ...], preparer: Preparer, most: int) -> tuple[list[PromptRow], AuditReport]:
    """Read every row of the data sets called `names` as a prompt of at most `most` tokens.

    Nothing is raised for bad rows: `AuditReport.enforce` does that.
    """
    report = AuditReport()
    sources = find_sources(names, preparer.config)
    check_kind(sources, "prompt")
    read = (preparer.checked_example(row, source, report) for source in sources for row in read_rows(source))
    examples = [example for example in read if example is not None]
    report.row = None
    return tokenize(examples, preparer, most, report), report


def tokenize(examples: Iterable[Example], preparer: Preparer, most: int, report: AuditReport) -> list[PromptRow]:
    """Return the prompts of `examples`; those that leave no room for an answer go to `report`."""
    rows: list[PromptRow] = []
    for example in examples:
        tokens = preparer.prompt_of(example, most, report)
        report.trained_rows += bool(tokens)
        report.tokens += len(tokens)
        rows += [PromptRow(example, tuple(tokens))] if tokens else []
    return rows


class PromptOrder:
    """Hands out prompts, for all ranks, in an order that is a function of seed and place."""

    def __init__(self, rows: Sequence[PromptRow], *, seed: int, shuffle: bool = True) -> None:
        if not rows:
            raise DataError("no prompt is left to train on", code="data_empty")
        self.rows, self.seed, self.shuffle = rows, seed, shuffle

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch in their order."""
        if not self.shuffle:
            return np.arange(len(self.rows))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def take(self, cursor: Cursor, count: int) -> tuple[list[PromptRow], Cursor]:
        """Return the next `count` prompts from `cursor` on, and the place behind them."""
        taken: list[PromptRow] = []
        epoch, position = cursor.epoch, cursor.position
        while len(taken) < count:
            order = self.order(epoch)[position : position + count - len(taken)]
            taken += [self.rows[i] for i in order]
            position += len(order)
            if position == len(self.rows):
                epoch, position = epoch + 1, 0
        return taken, replace(cursor, epoch=epoch, position=position)

    def passes(self, cursor: Cursor) -> float:
        """Return the passes over the prompts up to `cursor`."""
        return cursor.epoch + cursor.position / len(self.rows)
