"""Which of the files that scripts read afterwards a run writes, and when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from luthier.config.convert import flat_yaml
from luthier.core.paths import write_whole
from luthier.core.registry import OBJECTIVES
from luthier.training import reports
from luthier.training.plot import plot_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.config.schema import RunConfig
    from luthier.runs.store import RunStore

ARGUMENTS = "training_args.yaml"


def begin(run: RunStore, config: RunConfig, after: int, total: int) -> None:
    """Write the settings in LLaMA-Factory's keys, and the log from now on.

    `after` is the step that a run goes on from.
    """
    write_whole(run.path / ARGUMENTS, flat_yaml(config))
    run.listeners.append(reports.TrainerLog(run.path, after).add)
    run.event("begin", after=after, total=total)


def finish(
    run: RunStore, config: RunConfig, step: int, total: int, found: Mapping[str, float], seconds: float, ranks: int
) -> None:
    """Write results, state and curves of a run that is done.

    `found` are the metrics of the last evaluation, `seconds` the time that it took.
    """
    trained = reports.train_results(run.path, _rows_per_step(config, ranks))
    reports.write_results(run.path, "train", trained)
    if found:
        values: dict[str, Any] = {f"eval_{name}": value for name, value in found.items()}
        values |= {"epoch": trained["epoch"], "eval_runtime": round(seconds, 4)}
        if OBJECTIVES.name_of(config.objective) == "pt" and "loss" in found:
            values["perplexity"] = math.exp(min(found["loss"], 700.0))
        reports.write_results(run.path, "eval", values)
    reports.write_state(run.path, run.path, config.train, step, total)
    if config.train.plot_loss:
        plot_loss(run.path)


def _rows_per_step(config: RunConfig, ranks: int) -> int | None:
    """Return the rows of an optimizer step; None where batches are filled with tokens or answers."""
    fills = config.objective.rows == "text" if config.data.packing is None else config.data.packing
    if fills or "rollouts" in config.objective.needs:
        return None
    return config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps * ranks
