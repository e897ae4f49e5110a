"""The run directory of a training: which one, going on or anew, held while it runs, and the result at its root."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.config.load import dump
from luthier.core.errors import RunError
from luthier.core.log import logger
from luthier.core.paths import sync_folder
from luthier.runs.store import RunStore, is_run, list_checkpoints, new_run_path, read_status
from luthier.training.checkpoint import Checkpoint, newest_good, open_checkpoint
from luthier.training.trackers import tracker_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.config.schema import RunConfig

NOT_MODEL_FILES = ("optimizer.safetensors", "rng.safetensors", "value_head.safetensors", "state.json", "manifest.json")


def choose_run(config: RunConfig) -> tuple[Path, Checkpoint | None]:
    """Return the run directory and the checkpoint to go on from. Raises RunError when something would be lost."""
    asked = config.train
    if asked.output_dir is None:
        if asked.resume in ("must",):
            raise RunError("resume: must needs an output_dir (or --resume PATH)")
        if asked.resume not in ("never", "auto"):
            checkpoint = open_checkpoint(Path(asked.resume).expanduser())
            return checkpoint.path.parent, checkpoint
        return new_run_path(Path("runs"), asked.run_name or _default_name(config)), None
    path = Path(asked.output_dir).expanduser()
    if path.exists() and not path.is_dir():
        raise RunError(f"output_dir {path} is a file", code="run_exists")
    if not path.exists() or not any(path.iterdir()):
        if asked.resume == "must":
            raise RunError(f"resume: must, but {path} holds no run", code="run_no_checkpoint")
        named = asked.resume not in ("never", "auto")
        return path, open_checkpoint(Path(asked.resume).expanduser()) if named else None
    return path, _existing_run(path, config)


def _default_name(config: RunConfig) -> str:
    data = Path(config.data.dataset[0]).stem if config.data.dataset else "run"
    return f"{Path(config.model.model_name_or_path).name}-{data}"


def _existing_run(path: Path, config: RunConfig) -> Checkpoint | None:
    asked = config.train.resume
    if not is_run(path) and not (path / "run.lock").exists():
        raise RunError(f"output_dir {path} has files that are no run; choose another folder", code="run_exists")
    if asked not in ("never", "auto", "must"):
        return open_checkpoint(Path(asked).expanduser())
    if config.train.overwrite_output_dir and asked == "never":
        return None
    state = read_status(path).get("state", "unknown")
    has_checkpoints = bool(list_checkpoints(path))
    if asked == "never" and (has_checkpoints or state == "done"):
        raise RunError(
            f"output_dir {path} already holds a run ({state}); go on with --resume auto, choose another output_dir, "
            "or replace it with overwrite_output_dir=true",
            code="run_exists",
        )
    good = newest_good(path)
    if good is None and (asked == "must" or has_checkpoints):
        raise RunError(
            f"{path} holds no checkpoint that verifies, so it cannot be resumed; "
            "to begin anew set overwrite_output_dir=true",
            code="run_no_checkpoint",
        )
    return good


class Holding:
    """Holds the run directory while training; on any error its status says what happened."""

    def __init__(self, path: Path, config: RunConfig, accelerator: Any) -> None:
        self.path, self.config, self.accelerator = path, config, accelerator

    def __enter__(self) -> RunStore:
        if self.config.train.overwrite_output_dir and self.config.train.resume == "never" and self.path.exists():
            _move_aside(self.path)
        text = yaml.safe_dump(dump(self.config), sort_keys=False, allow_unicode=True)
        rank = self.accelerator.process_index
        path = self.path if rank == 0 else self.path / f"rank-{rank}"
        self.run = RunStore.open(path, text)
        self.run.set_status("starting", name=self.config.train.run_name or self.path.name)
        if self.accelerator.log_with:
            told = tracker_settings(self.config.train)
            self.accelerator.init_trackers(self.config.train.project, config={"run": str(self.path)}, init_kwargs=told)
        return self.run

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self.run.status.get("state") not in ("stopped", "done"):
            code = getattr(error, "code", type(error).__name__)
            try:
                self.run.set_status("failed", error=str(error), error_code=code)
            except OSError as disk:
                logger.error("status.json could not be written: %s", disk)
        if self.accelerator.log_with:
            self.accelerator.end_training()
        self.run.close()


def _move_aside(path: Path) -> None:
    if not any(path.iterdir()):
        return
    old = new_run_path(path.parent, f"{path.name}-replaced")
    holder = RunStore.open(path, (path / "config.yaml").read_text() if (path / "config.yaml").exists() else "")
    holder.close()  # it was not locked by anyone
    path.rename(old)
    logger.warning("the run that was in %s is now in %s", path, old)


def publish(run: Path, source: Path, save_model: Callable[[Path], None]) -> None:
    """Put the final model at the root of the run directory: every file whole, weights last."""
    temporary = run / f"tmp-final-{os.getpid()}"
    temporary.mkdir()
    if source.is_dir():
        for file in source.iterdir():
            if file.is_file() and file.name not in NOT_MODEL_FILES:
                shutil.copy2(file, temporary / file.name)
    else:
        save_model(temporary)
    for file in sorted(temporary.iterdir(), key=lambda p: p.suffix == ".safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        file.replace(run / file.name)
    temporary.rmdir()
    sync_folder(run)
