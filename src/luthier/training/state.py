"""What a checkpoint holds beside the model: optimizer, schedule, random states, place in the data."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

import luthier
from luthier.core.errors import RunError
from luthier.core.log import logger
from luthier.data.loader import Cursor
from luthier.training.checkpoint import Checkpoint, load_optimizer, random_states, restore_random_states, save_optimizer

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(slots=True)
class TrainState:
    """What changes while training, besides tensors."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    epoch: float = 0.0
    tokens: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    evaluations_without_gain: int = 0
    last_loss: float = math.nan
    last_eval_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Updates:
    """What makes an update out of a gradient, and what it must fit when a run goes on."""

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Any
    total_steps: int
    """Updates of the whole run."""
    updates_per_step: int
    identity: dict[str, Any]
    """Data fingerprint and every setting that changes what the loss means."""


def versions() -> dict[str, Any]:
    """Return what bit-identical losses depend on."""
    import transformers

    return {
        "luthier": luthier.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.machine() + " " + torch.backends.cpu.get_cpu_capability(),
    }


def write_state(folder: Path, state: TrainState, updates: Updates) -> None:
    """Write everything that resuming needs beside the model."""
    names = {id(p): name for name, p in updates.parameters.items()}
    numbers = save_optimizer(updates.optimizer, names, folder)
    save_file(random_states(), folder / "rng.safetensors")
    plain = {
        **asdict(state),
        "optimizer_numbers": numbers,
        "learning_rates": [group["lr"] for group in updates.optimizer.param_groups],
        "schedule": {k: v for k, v in updates.schedule.state_dict().items() if isinstance(v, (int, float, list, bool))},
        "total_steps": updates.total_steps,
        "identity": updates.identity,
        "versions": versions(),
    }
    # Infinity and NaN are allowed here: only luthier reads this file.
    (folder / "state.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")


def read_state(checkpoint: Checkpoint, updates: Updates) -> TrainState:
    """Put a checkpoint's optimizer, schedule and random states in place; the model was loaded from it before.

    Raises RunError naming the first setting or data fingerprint that differs.
    """
    stored = checkpoint.state
    _check_identity(stored["identity"], updates.identity)
    _say_differences(stored)
    load_optimizer(updates.optimizer, updates.parameters, checkpoint.path, stored["optimizer_numbers"])
    if stored["total_steps"] == updates.total_steps:
        updates.schedule.load_state_dict({**updates.schedule.state_dict(), **stored["schedule"]})
        for group, rate in zip(updates.optimizer.param_groups, stored["learning_rates"], strict=True):
            group["lr"] = rate
    else:
        logger.warning("the run was planned for %d steps, now %d: the learning rate follows the new plan",
                       stored["total_steps"], updates.total_steps)  # fmt: skip
        for _ in range(int(stored["step"]) * updates.updates_per_step):
            updates.schedule.step()
    restore_random_states(load_file(checkpoint.path / "rng.safetensors"))
    known = {each.name for each in fields(TrainState)}
    state = TrainState(**{key: value for key, value in stored.items() if key in known})
    state.cursor = Cursor(**stored["cursor"])
    return state


def _check_identity(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with other data or with settings that change what the loss means."""
    for key in {**then, **now}:
        if then.get(key) != now.get(key):
            what = "the data are not those that the run began with" if key == "data" else f"the setting {key} differs"
            raise RunError(
                f"cannot resume: {what}: then {then.get(key)}, now {now.get(key)}; "
                "start a new output_dir, or change it back",
                code="run_changed",
            )


def _say_differences(stored: dict[str, Any]) -> None:
    then, now = stored["versions"], versions()
    differing = [f"{key} {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
    if differing:
        logger.warning("resuming, but not bit-identically: %s", ", ".join(differing))
