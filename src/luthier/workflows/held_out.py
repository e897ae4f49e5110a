"""What is measured, and on which rows: built from the settings before any model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.data.prepare import prepare
from luthier.evaluation.kind import KINDS, Kind, Task
from luthier.evaluation.rows import HeldOut, Split, kind_for
from luthier.workflows.build import read_preparer, seed_of_rows, split_rows

if TYPE_CHECKING:
    import numpy as np

    from luthier.config.schema import RunConfig

_ASKED_BY = {"forgetting": "eval_general_dataset", "choice": "task", "judge": "eval_judge", "harness": "eval_tasks"}
"""Kind -> the setting that asks for it where eval_kinds is empty."""


def make_kinds(config: RunConfig) -> dict[str, Kind]:
    """Return the kinds of evaluation that the settings ask for, by name.

    Raises ConfigError, DataError and DependencyError for whatever is known to be wrong without a model.
    """
    classes = {name: KINDS.get(name) for name in config.evaluate.eval_kinds}
    task = Task(config, held_out_rows(config))
    classes = classes or {name: KINDS.get(name) for name in _usual_kinds(task)}
    return {name: made(task) for name, made in classes.items()}


def _usual_kinds(task: Task) -> list[str]:
    rows = task.held_out
    kinds = ["loss"] if rows is not None and rows.has_targets else []
    kinds += ["generate"] if rows is not None and rows.with_answers else []
    kinds += [kind for kind, setting in _ASKED_BY.items() if getattr(task.config.evaluate, setting)]
    if not kinds:
        raise ConfigError(
            "eval_dataset is required: the rows to measure on (a name in dataset_info.json or a file); or set "
            f"val_size, {' or '.join(_ASKED_BY.values())}",
            code="config_missing",
        )
    return kinds


def held_out_rows(config: RunConfig) -> HeldOut | None:
    """Return the rows of eval_dataset, or else those that val_size sets aside; None where the settings name neither."""
    if config.data.eval_dataset:
        return HeldOut(config.data.eval_dataset, config, kind_for(config.data.eval_dataset, config))
    kind = config.objective.rows
    if not (config.data.val_size and config.data.dataset) or kind == "prompt":
        return None
    store, report = prepare(config.data.dataset, read_preparer(config))
    report.enforce(config.data.bad_rows)

    def choose(count: int) -> np.ndarray:
        return split_rows(count, config.data.val_size, seed_of_rows(config))[1]

    logger.info("evaluation rows: those that val_size %g sets aside from training", config.data.val_size)
    origins = frozenset(str(store.origins[i]) for i in choose(len(store)))
    return HeldOut(config.data.dataset, config, kind, split=Split(origins, choose))
