"""What is measured, and on which rows: built from the settings before any model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.data.prepare import prepare
from luthier.evaluation.kind import KINDS, Kind, Task
from luthier.evaluation.rows import HeldOut, Split
from luthier.workflows.build import read_preparer, split_rows

if TYPE_CHECKING:
    import numpy as np

    from luthier.config.schema import RunConfig
    from luthier.core.types import RowKind

_ASKED_BY = {"forgetting": "eval_general_dataset", "choice": "task", "judge": "eval_judge", "harness": "eval_tasks"}
"""Kind -> the setting that asks for it where eval_kinds is empty."""
_READ_AS: dict[str, RowKind] = {"text": "text"}
"""What an objective learns from -> what held-out rows are; single answers where it is not here."""


def make_kinds(config: RunConfig) -> dict[str, Kind]:
    """Return the kinds of evaluation that the settings ask for, by name.

    Raises ConfigError, DataError and DependencyError for whatever is known to be wrong without a model.
    """
    classes = {name: KINDS.get(name) for name in config.evaluate.eval_kinds}
    task = Task(config, held_out_rows(config))
    classes = classes or {name: KINDS.get(name) for name in _usual_kinds(task)}
    return {name: made(task) for name, made in classes.items()}


def _usual_kinds(task: Task) -> list[str]:
    rows = [] if task.held_out is None else ["loss", *(["generate"] if task.held_out.with_answers else [])]
    kinds = rows + [kind for kind, setting in _ASKED_BY.items() if getattr(task.config.evaluate, setting)]
    if not kinds:
        raise ConfigError(
            "eval_dataset is required: the rows to measure on (a name in dataset_info.json or a file); or set "
            f"val_size, {' or '.join(_ASKED_BY.values())}",
            code="config_missing",
        )
    return kinds


def held_out_rows(config: RunConfig) -> HeldOut | None:
    """Return the rows of eval_dataset, or else those that val_size sets aside; None where the settings name neither."""
    kind = _READ_AS.get(config.objective.rows, "answer")
    if config.data.eval_dataset:
        return HeldOut(config.data.eval_dataset, config, kind)
    if not (config.data.val_size and config.data.dataset) or config.objective.rows not in ("answer", "text"):
        return None
    store, report = prepare(config.data.dataset, read_preparer(config))
    report.enforce(config.data.bad_rows)

    def choose(count: int) -> np.ndarray:
        return split_rows(count, config.data.val_size, config.train.seed)[1]

    logger.info("evaluation rows: those that val_size %g sets aside from training", config.data.val_size)
    origins = frozenset(str(store.origins[i]) for i in choose(len(store)))
    return HeldOut(config.data.dataset, config, kind, split=Split(origins, choose))
