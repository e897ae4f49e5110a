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
        return [example for example in self.examples if expected_of(example) is not None]

    @property
    def has_targets(self) -> bool:
        """Tell whether there is something to score, and not only prompts."""
        return self.kind != "prompt"

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
                    example = _example(row, source, self.kind)
                    # Of answers that are tagged, the bad ones are nothing to aim at.
                    examples += [] if example.desirable is False else [example]
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
            kind: RowKind = "answer" if self.kind == "tagged" else self.kind
            store, report = prepare(self.names, Preparer(subject.template, self.config.data, kind))
            report.enforce(self.config.data.bad_rows)
            chosen = np.arange(len(store)) if self.split is None else self.split.choose(len(store))
            if self.kind == "tagged":
                good = {example.origin for example in self.examples}
                chosen = chosen[[str(store.origins[int(i)]) in good for i in chosen]]
            self._units[subject.writing] = store, chosen
        store, chosen = self._units[subject.writing]
        # Of two answers to one prompt the first one is the chosen one.
        most = 1 if self.kind == "pair" else None
        return [store[int(i)][:most] for i in chosen], [str(store.origins[int(i)]) for i in chosen]


def expected_of(example: Example) -> str | None:
    """Return the answer that a row expects, the chosen one of two; None where it does not say."""
    if example.endings:
        return example.endings[0][-1].content
    said = example.extra.get("answer")
    return None if said is None else str(said)


_READ_AS: dict[RowKind, tuple[RowKind, ...]] = {
    "answer": ("answer",),
    "text": ("text",),
    "pair": ("pair", "answer"),
    "tagged": ("tagged", "answer"),
    "prompt": ("answer", "prompt"),
}
"""What an objective learns from -> what held-out rows may be, the first that fits the first row."""


def kind_for(names: tuple[str, ...], config: RunConfig) -> RowKind:
    """Return as what the rows of some data sets are read when a model of this objective is measured on them."""
    choices = _READ_AS[config.objective.rows]
    for kind in choices:
        if _fits(names, config, kind):
            return kind
    return choices[0]


def _fits(names: tuple[str, ...], config: RunConfig, kind: RowKind) -> bool:
    sources = find_sources(names, config.data)
    try:
        check_kind(sources, kind)
        first = next((row, source) for source in sources for row in read_rows(source) if row.value is not None)
        _example(*first, kind)
    except (DataError, StopIteration):
        return False
    return True


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
