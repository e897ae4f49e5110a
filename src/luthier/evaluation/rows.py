"""Held-out rows: read and checked once, before a model is loaded; tokenized once for each way to write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import ConfigError, DataError
from luthier.core.findings import RowError
from luthier.core.log import logger
from luthier.data.prepare import Preparer, prepare
from luthier.data.rows import check_kind, read_example
from luthier.data.sources import find_sources, read_rows

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig
    from luthier.core.types import Example, RowKind, Unit
    from luthier.data.sources import Row, Source
    from luthier.data.store import UnitStore
    from luthier.evaluation.subject import Subject


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of the training data that `val_size` has set aside."""

    origins: frozenset[str]
    choose: Callable[[int], np.ndarray]
    """Number of units -> those that were set aside."""


class HeldOut:
    """The rows of some data sets under the settings of a run."""

    def __init__(self, names: tuple[str, ...], config: RunConfig, kind: RowKind, *, split: Split | None = None) -> None:
        """Read the rows. Raises DataError naming the first bad one, unless `bad_rows` says to skip those."""
        self.names, self.config, self.split = names, config, split
        self.kind: RowKind = kind
        self.examples = self._read(config.evaluate.predict_samples)
        """Those that are answered: at most predict_samples of each data set."""
        if not self.examples:
            raise DataError(f"{', '.join(names)}: there are no rows to evaluate on", code="data_empty")
        self._units: dict[str, tuple[UnitStore, np.ndarray]] = {}

    @property
    def with_answers(self) -> list[Example]:
        """Return the rows that say what is expected."""
        return [example for example in self.examples if example.endings]

    def _read(self, most: int) -> list[Example]:
        # Of a split, rows are counted after they are chosen.
        limit = self.config.data.max_samples if self.split or not most else most
        sources = find_sources(self.names, replace(self.config.data, max_samples=limit))
        check_kind(sources, self.kind)
        examples: list[Example] = []
        skipped = 0
        for source in sources:
            for row in read_rows(source):
                if self.split is not None and row.where not in self.split.origins:
                    continue
                try:
                    examples.append(_example(row, source, self.kind))
                except DataError:
                    if self.config.data.bad_rows == "fail":
                        raise
                    skipped += 1
        if skipped:
            logger.warning("evaluation: %d bad rows are skipped (bad_rows: skip)", skipped)
        return examples[:most] if self.split and most else examples

    def units(self, subject: Subject) -> tuple[Sequence[Unit], list[str]]:
        """Return every row as tokens with weights, prepared as training prepares them, and where each stands."""
        if subject.writing not in self._units:
            store, report = prepare(self.names, Preparer(subject.template, self.config.data, self.kind))
            report.enforce(self.config.data.bad_rows)
            chosen = np.arange(len(store)) if self.split is None else self.split.choose(len(store))
            self._units[subject.writing] = store, chosen
        store, chosen = self._units[subject.writing]
        return [store[i] for i in chosen], [str(store.origins[i]) for i in chosen]


def kind_of(names: tuple[str, ...], config: RunConfig) -> RowKind:
    """Return "text" where the first row is plain text, else "answer"."""
    for source in find_sources(names, config.data):
        first = next((row for row in read_rows(source) if row.value is not None), None)
        if first is not None and first.value is not None:
            try:
                return "text" if read_example(first.value, source, "answer").text is not None else "answer"
            except RowError:
                return "answer"
    return "answer"


def need_rows(config: RunConfig, kind: str) -> ConfigError:
    """Return what to raise when there are no rows for a kind of evaluation."""
    known = "eval_dataset is required: the held-out rows"
    return ConfigError(f"{kind}: {known} (a name in dataset_info.json or a file), or val_size", code="config_missing")


def _example(row: Row, source: Source, kind: RowKind) -> Example:
    if row.value is None:
        raise DataError(str(row.finding), code="data_bad_row")
    try:
        return replace(read_example(row.value, source, kind), origin=row.where)
    except RowError as error:
        raise DataError(f"{row.where} {error}", code="data_bad_row") from error
