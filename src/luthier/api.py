"""The Python entry points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.config.load import load_config
from luthier.core.errors import ConfigError
from luthier.core.log import setup
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from luthier.config.schema import RunConfig


def run(command: str, config: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Any:
    """Run "train", "evaluate", "export" or "estimate" with a YAML file or a mapping of settings.

    Returns TrainResult, Comparison, a list of Exported or Estimate. Raises a LuthierError whose message says
    what was wrong, what was found and what to do.

    >>> run("trian", {"model_name_or_path": "smollm2-135m"})
    Traceback (most recent call last):
    luthier.core.errors.ConfigError: no command 'trian'; did you mean 'train'?
    """
    if command not in _COMMANDS:
        raise ConfigError(f"no command {command!r}{did_you_mean(command, list(_COMMANDS))}")
    setup()
    return _COMMANDS[command](load_config(config, overrides).config)


def _train(config: RunConfig) -> Any:
    from luthier.workflows.stages import carry_out

    return carry_out(config)


def _evaluate(config: RunConfig) -> Any:
    from luthier.workflows.evaluate import evaluate_all

    return evaluate_all([config])


def _export(config: RunConfig) -> Any:
    from luthier.workflows.export import export_model

    return export_model(config)


def _estimate(config: RunConfig) -> Any:
    from luthier.workflows.estimate import estimate

    return estimate(config)


_COMMANDS: dict[str, Callable[[RunConfig], Any]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "estimate": _estimate,
}
