"""Checkpoints: written aside, synced, hashed, renamed; verified before use; restored bit by bit.

A checkpoint is a Hugging Face or peft folder plus `optimizer.safetensors`, `rng.safetensors`, `state.json` and
`manifest.json` with the size and SHA-256 of every file. No pickle.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.core.errors import RunError, TrainingError
from luthier.core.faults import fault_point
from luthier.core.log import logger
from luthier.core.paths import sync_folder
from luthier.runs.manifest import damage, seal
from luthier.runs.store import list_checkpoints
from luthier.training.optimizers import BlockAdam

if TYPE_CHECKING:
    from collections.abc import Callable

SPARE_SHARE = 0.05
"""Space that stays free on the disk beyond the checkpoint itself."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    state: dict[str, Any]


def write_checkpoint(run: Path, step: int, write: Callable[[Path], None], *, needed_bytes: int) -> Path:
    """Write a checkpoint by `write(folder)` and return its final path.

    Raises TrainingError when the disk is full; checkpoints that were there stay as they are.
    """
    _check_space(run, needed_bytes)
    target = run / f"checkpoint-{step}"
    temporary = run / f"tmp-{step}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        fault_point("checkpoint.begin")
        write(temporary)
        fault_point("checkpoint.written")
        seal(temporary, step)
        _put_in_place(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"checkpoint-{step} could not be written: {error}; earlier checkpoints are intact", code="disk_full"
        ) from error
    return target


def _check_space(run: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(run).free
    if free < needed_bytes * (1 + SPARE_SHARE):
        raise TrainingError(
            f"disk full: a checkpoint takes {needed_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free in {run}; "
            "earlier checkpoints are intact",
            code="disk_full",
        )


def _put_in_place(temporary: Path, target: Path) -> None:
    fault_point("checkpoint.before_rename")
    bad: Path | None = None
    if target.exists():
        if damage(target) is None:  # the same step was saved before, whole
            shutil.rmtree(temporary)
            return
        bad = target.with_name(f"trash-bad-{target.name}-{os.getpid()}")
        target.rename(bad)
        fault_point("checkpoint.moved_bad")
    temporary.rename(target)
    fault_point("checkpoint.renamed")
    sync_folder(target.parent)
    fault_point("checkpoint.done")
    if bad is not None:
        shutil.rmtree(bad, ignore_errors=True)


def newest_good(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies and can be resumed; damaged ones are named on the way."""
    for path in list_checkpoints(run):
        wrong = damage(path)
        if wrong is None:
            return open_checkpoint(path)
        logger.warning("%s is damaged (%s); going back to the one before", path.name, wrong)
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint whose files verify. Raises RunError naming the file that does not."""
    if not path.is_dir():
        raise RunError(f"checkpoint {path} does not exist", code="run_no_checkpoint")
    wrong = damage(path)
    if wrong is not None:
        raise RunError(f"{path} is damaged: {wrong}", code="run_damaged_checkpoint")
    if not (path / "state.json").is_file():
        raise RunError(
            f"{path} holds only a model (save_only_model: true) and cannot be resumed", code="run_no_checkpoint"
        )
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(path, int(state["step"]), state)


def prune(run: Path, keep_newest: int, keep: Path | None) -> None:
    """Remove old checkpoints but `keep_newest`, `keep` (the best), and always the newest one that verifies."""
    if keep_newest <= 0:
        return
    every = list_checkpoints(run)
    newest_verified = next((path for path in every if damage(path) is None), None)
    for path in every[keep_newest:]:
        if path not in (keep, newest_verified):
            trash = path.with_name(f"trash-{path.name}-{os.getpid()}")
            fault_point("prune.before_rename")
            path.rename(trash)
            sync_folder(run)
            fault_point("prune.renamed")
            shutil.rmtree(trash, ignore_errors=True)


def save_optimizer(optimizer: torch.optim.Optimizer, names: dict[int, str], folder: Path) -> dict[str, Any]:
    """Write optimizer tensors by parameter name; return the numbers that are no tensors."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    storages: set[int] = set()
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                # 8-bit states share a table, which a file of tensors must hold once for each.
                shared = value.data_ptr() in storages
                storages.add(value.data_ptr())
                tensors[f"{names[id(parameter)]}|{key}"] = value.clone() if shared else value.contiguous()
            else:
                numbers[f"{names[id(parameter)]}|{key}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    return numbers


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], folder: Path, numbers: dict[str, Any]
) -> None:
    """Put back what `save_optimizer` wrote. Raises RunError when the parameters differ."""
    stored: dict[str, Any] = {**load_file(folder / "optimizer.safetensors"), **numbers}
    unknown = sorted({key.rpartition("|")[0] for key in stored} - set(parameters))
    if unknown:
        raise RunError(f"{folder} was made with other trained parameters: {unknown[0]} is not one of them now")
    for key, value in stored.items():
        name, _, what = key.rpartition("|")
        optimizer.state[parameters[name]][what] = value
    if isinstance(optimizer, BlockAdam):
        optimizer.go_on()


def random_states() -> dict[str, torch.Tensor]:
    """Return the random states of Python, numpy, torch and every GPU as byte tensors."""
    python = json.dumps(random.getstate()).encode()
    numpy_state = np.random.get_state(legacy=False)
    key = numpy_state["state"]["key"].tolist()  # pyright: ignore[reportIndexIssue, reportArgumentType]
    facts = {**numpy_state, "state": {**numpy_state["state"], "key": key}}  # pyright: ignore
    states = {"torch": torch.get_rng_state()}
    states |= {name: torch.frombuffer(bytearray(raw), dtype=torch.uint8) for name, raw in
               (("python", python), ("numpy", json.dumps(facts).encode()))}  # fmt: skip
    if torch.cuda.is_available():
        states |= {f"cuda-{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_states(states: dict[str, torch.Tensor]) -> None:
    """Put back what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    version, inner, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((version, tuple(inner), gauss))
    facts = json.loads(bytes(states["numpy"].tolist()))
    facts["state"]["key"] = np.asarray(facts["state"]["key"], dtype=np.uint32)
    np.random.set_state(facts)
    if torch.cuda.is_available() and "cuda-0" in states:
        torch.cuda.set_rng_state_all([states[f"cuda-{i}"] for i in range(torch.cuda.device_count())])
