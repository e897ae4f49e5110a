"""What a run learns from: rows of a data set, or rollouts. Both are read and checked before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from luthier.data.loader import Loader, MapLoader
from luthier.models.reference import Reference
from luthier.training.trainer import Trainer
from luthier.workflows.build import Data, held_out_parts, make_layout, make_loaders, read_data
from luthier.workflows.reference import score_beforehand

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig
    from luthier.data.audit import AuditReport
    from luthier.runs.store import RunStore
    from luthier.training.stop import StopFlag
    from luthier.workflows.judges import Judges
    from luthier.workflows.parts import Parts


@dataclass(slots=True)
class Feed:
    """What the trainer is given."""

    loader: Loader
    eval_loader: MapLoader | None = None
    reference: Reference | None = None
    """What still scores rows while training."""
    evaluator: Callable[[], dict[str, float]] | None = None
    updates_per_step: int = 1
    attend: Callable[[Trainer], None] = lambda trainer: None
    """Called with the trainer once it is there."""
    close: Callable[[], None] = lambda: None


class Source(Protocol):
    """Rows or prompts of a run."""

    reports: dict[str, AuditReport]
    size: str
    """How many there are, in words."""
    per_step: str
    """How many a step has, in words."""

    @property
    def fingerprint(self) -> str | None:
        """Return what names exactly these rows; None where they are streamed."""
        ...

    def feed(self, run: RunStore, *, stop: StopFlag) -> Feed:
        """Return what the trainer is given."""
        ...


class Rows:
    """Rows of data sets."""

    def __init__(self, config: RunConfig, parts: Parts, accelerator: Any) -> None:
        self.config, self.parts, self.accelerator = config, parts, accelerator
        self.data: Data = read_data(config, parts.preparer)
        layout = make_layout(config, rank=accelerator.process_index, num_ranks=accelerator.num_processes)
        self.loader, self.eval_loader = make_loaders(config, self.data, parts.preparer, layout)
        self.parts_of_eval = held_out_parts(config, self.data, layout)
        self.reports = self.data.reports
        train = config.train
        rows = train.per_device_train_batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        self.size = f"{len(self.data.train_rows) if self.data.train is not None else 'streamed'} rows"
        self.per_step = f"about {rows} rows a step"

    @property
    def fingerprint(self) -> str | None:
        """Return the number of rows and a hash of all of them."""
        train = self.data.train
        if train is None:
            return None
        return f"{len(train)} rows, {hashlib.sha256(train.unit_hash.tobytes()).hexdigest()[:16]}"

    def feed(self, run: RunStore, *, stop: StopFlag) -> Feed:
        """Return loaders, and score the rows with the reference where that pays."""
        reference = score_beforehand(
            self.config, self.data, self.loader, self.parts.reference, accelerator=self.accelerator, stop=stop
        )
        return Feed(self.loader, self.eval_loader, reference, attend=self._attend)

    def _attend(self, trainer: Trainer) -> None:
        if self.parts_of_eval:
            trainer.eval_parts = self.parts_of_eval


def open_source(config: RunConfig, parts: Parts, accelerator: Any, judges: Judges | None) -> Source:
    """Return what this run learns from: rows, or rollouts where there are judges. Raises ConfigError and DataError."""
    if judges is None:
        return Rows(config, parts, accelerator)
    from luthier.workflows.rollouts import Rollouts

    return Rollouts(config, parts, accelerator, judges)
