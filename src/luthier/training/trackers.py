"""Trackers that a run reports to, through accelerate: which are there, and how they are told what the run is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from luthier.config.training import TrainConfig

PACKAGES = {"comet_ml": "comet-ml", "dvclive": "dvclive"}
"""Tracker -> the package that brings it, where it is called otherwise."""


def trackers(config: TrainConfig) -> list[Any]:
    """Return the trackers of `report_to` and `use_swanlab`; "all" is every one that is installed.

    Raises ConfigError or DependencyError for what is not there.
    """
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = {str(each.value) for each in LoggerType} - {"all"}
    there = {str(getattr(each, "value", each)) for each in get_available_trackers()}
    asked = [*config.report_to, *(["swanlab"] if config.use_swanlab else [])]
    if "all" in asked:
        return sorted(there)
    for name in asked:
        if name not in known:
            raise ConfigError(f"report_to: {name} is no tracker; there are {', '.join(sorted(known))}, all, none")
        if name not in there:
            raise DependencyError(f"report_to: {name} is not installed; run: pip install {PACKAGES.get(name, name)}")
    return list(dict.fromkeys(asked))


def tracker_settings(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return what each tracker is told when it begins: the name of the run, and the settings of SwanLab."""
    name = {} if config.run_name is None else {"name": config.run_name}
    swanlab = {
        "project": config.swanlab_project,
        "workspace": config.swanlab_workspace,
        "experiment_name": config.swanlab_run_name or config.run_name,
        "mode": config.swanlab_mode,
        "logdir": config.swanlab_logdir,
    }
    run = {} if config.run_name is None else {"run_name": config.run_name}
    return {
        "wandb": name,
        "mlflow": run,
        "swanlab": {key: value for key, value in swanlab.items() if value is not None},
    }
