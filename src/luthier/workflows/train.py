"""Train as a configuration says and return the run directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from luthier.config.load import dump
from luthier.core.errors import LuthierError, RunError
from luthier.core.log import logger
from luthier.core.paths import sync_folder, write_whole
from luthier.kernels.cpu import prepare_process
from luthier.models.device import place
from luthier.models.load import (
    ModelFiles,
    load_adapter,
    load_model,
    load_tokenizer,
    parameter_counts,
    put_kernels,
    resolve,
    resolve_adapter,
)
from luthier.models.policy import Policy
from luthier.runs.store import RunStore, is_run, list_checkpoints, new_run_path, read_status
from luthier.training.checkpoint import Checkpoint, newest_good, open_checkpoint
from luthier.training.metrics import peak_memory_bytes
from luthier.training.plot import plot_loss
from luthier.training.stop import StopFlag, listening
from luthier.training.trainer import Trainer, TrainState, best_checkpoint
from luthier.workflows.build import Data, make_layout, make_loaders, make_preparer, read_data

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig

NOT_MODEL_FILES = ("optimizer.safetensors", "rng.safetensors", "state.json", "manifest.json")
SETTINGS_THAT_MATTER = ("tuning", "objective", "model", "data")
LOOP_SETTINGS_THAT_MATTER = [
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "warmup_ratio",
    "warmup_steps",
]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run reports."""

    run: Path
    status: str
    steps: int
    train_loss: float | None
    eval_loss: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int


def train(config: RunConfig, *, quiet: bool = False) -> TrainResult:
    """Train as `config` says.

    Raises a LuthierError: ConfigError, DataError, ModelError and RunError before anything is written, TrainingError or
    Interrupted afterwards, with the last checkpoint intact.
    """
    path, resume = _choose_run(config)
    if resume is not None and (finished := _already_finished(path, config)):
        return finished
    prepare_process(config.model.threads)
    stop = StopFlag()
    torch.manual_seed(config.train.seed)
    accelerator = _accelerator(config, path)
    parts = _assemble(config, resume)
    data = read_data(config, parts.preparer)
    with (
        _holding(path, config, accelerator) as run,
        listening(stop, lambda n: run.set_status("stopped", stop_reason=f"signal {n}")),
    ):
        if accelerator.is_main_process:
            _write_audit(run, data)
        layout = make_layout(
            config, packable=config.tuning.packable, rank=accelerator.process_index, num_ranks=accelerator.num_processes
        )
        loader, eval_loader = make_loaders(config, data, parts.preparer, layout)
        trainer = Trainer(
            parts.policy,
            config.objective,
            config.train,
            accelerator=accelerator,
            loader=loader,
            eval_loader=eval_loader,
            run=run,
            save_model=parts.save_model,
            stop=stop,
            identity=_identity(config, data),
            quiet=quiet,
        )
        _log_plan(config, data, trainer)
        state = trainer.fit(resume)
        return _finish(config, run, trainer, state, parts.save_model)


# ---- which directory, which checkpoint


def _choose_run(config: RunConfig) -> tuple[Path, Checkpoint | None]:
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
        return path, None
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


def _already_finished(path: Path, config: RunConfig) -> TrainResult | None:
    status = read_status(path)
    steps = config.train.max_steps if config.train.max_steps > 0 else status.get("total")
    if (
        status.get("state") != "done"
        or status.get("step") != steps
        or status.get("epochs_asked") != config.train.num_train_epochs
    ):
        return None
    logger.info("%s is finished: %s steps; raise num_train_epochs or max_steps to go on", path, status["step"])
    return TrainResult(path, "done", *(status.get(k) for k in ("step", "train_loss", "eval_loss", "tokens_per_second")),  # pyright: ignore
                       peak_memory_bytes=status.get("peak_memory_bytes") or 0)  # fmt: skip


# ---- objects


@dataclass(slots=True)
class _Parts:
    policy: Policy
    preparer: Any
    save_model: Callable[[Path], None]


def _assemble(config: RunConfig, resume: Checkpoint | None) -> _Parts:
    """Load the model, from the checkpoint when there is one, and put tuning and kernels on it."""
    base_learns = not hasattr(config.tuning, "rank")
    placement = place(config.model, base_learns=base_learns)
    logger.info("device: %s", placement.reason)
    files = resolve(config.model.model_name_or_path)
    if resume is not None and not (resume.path / "adapter_config.json").is_file():
        files = ModelFiles(str(resume.path), None, files.public_base)
    tokenizer = load_tokenizer(files, config.model)
    model = load_model(files, config.model, placement)
    preparer = make_preparer(tokenizer, config, model.config.model_type)
    model = _tuned(model, config, files, resume)
    put_kernels(model, config.model)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    every, learning = parameter_counts(model)
    logger.info("model: %.1f M parameters, %.2f M learn (%.2f %%)", every / 1e6, learning / 1e6, 100 * learning / every)

    def save_model(folder: Path) -> None:
        options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        for adapter in getattr(model, "peft_config", {}).values():
            adapter.base_model_name_or_path = files.public_base
        model.save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)

    return _Parts(Policy(model, autocast=placement.autocast), preparer, save_model)


def _tuned(model: Any, config: RunConfig, files: ModelFiles, resume: Checkpoint | None) -> Any:
    if resume is not None and (resume.path / "adapter_config.json").is_file():
        return load_adapter(model, resume.path, trainable=True)
    adapter = resolve_adapter(config.model.adapter_name_or_path) if config.model.adapter_name_or_path else files.adapter
    if adapter is None:
        return config.tuning.apply(model)
    if not hasattr(config.tuning, "rank"):
        raise LuthierError(f"{adapter} is an adapter; it is continued with finetuning_type: lora", code="config")
    logger.info("continuing adapter %s with its own rank and targets", adapter)
    return load_adapter(model, adapter, trainable=True)


def _accelerator(config: RunConfig, path: Path) -> Any:
    from accelerate import Accelerator

    on_cpu = place(config.model).device.type == "cpu"
    accelerator = Accelerator(
        cpu=on_cpu, gradient_accumulation_steps=1, log_with=list(config.train.report_to) or None, project_dir=str(path)
    )
    return accelerator


class _holding:
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
        if self.config.train.report_to:
            self.accelerator.init_trackers("tracker", config={"run": str(self.path)})
        return self.run

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self.run.status.get("state") not in ("stopped", "done"):
            code = getattr(error, "code", type(error).__name__)
            try:
                self.run.set_status("failed", error=str(error), error_code=code)
            except OSError as disk:
                logger.error("status.json could not be written: %s", disk)
        if self.config.train.report_to:
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


def _write_audit(run: RunStore, data: Data) -> None:
    reports = {name: report.as_dict() for name, report in data.reports.items()}
    write_whole(run.path / "audit.json", json.dumps(reports, indent=1, ensure_ascii=False))


def _identity(config: RunConfig, data: Data) -> dict[str, Any]:
    """Return what must be equal for a resumed run to mean the same."""
    nested = dump(config)
    facts = {
        f"{s}.{k}": v for s in SETTINGS_THAT_MATTER for k, v in nested[s].items() if k not in ("threads", "dataset_dir")
    }
    facts |= {f"train.{k}": nested["train"][k] for k in LOOP_SETTINGS_THAT_MATTER}
    if data.train is not None:
        facts["data"] = f"{len(data.train)} rows, {hashlib.sha256(data.train.unit_hash.tobytes()).hexdigest()[:16]}"
    return facts


def _log_plan(config: RunConfig, data: Data, trainer: Trainer) -> None:
    rows = len(data.train_rows) if data.train is not None else "streamed"
    size = (
        config.train.per_device_train_batch_size
        * config.train.gradient_accumulation_steps
        * trainer.accelerator.num_processes
    )
    logger.info("plan: %s rows, %d steps, about %d rows a step", rows, trainer.total_steps, size)


# ---- the end


def _finish(
    config: RunConfig, run: RunStore, trainer: Trainer, state: TrainState, save_model: Callable[[Path], None]
) -> TrainResult:
    eval_loss = trainer.evaluate() if trainer.eval_loader is not None else None
    source = (
        best_checkpoint(run.path, state.best_step) if config.train.load_best_model_at_end and state.best_step else None
    )
    if source is not None:
        logger.info("the result is %s, with eval_loss %.4f", source.name, state.best_loss)
        eval_loss = state.best_loss
    if trainer.accelerator.is_main_process:
        _publish(run.path, source or run.path / f"checkpoint-{state.step}", save_model)
        if config.train.plot_loss:
            plot_loss(run.path)
    speed = round(state.tokens / trainer.seconds_training, 1) if trainer.seconds_training else None
    result = TrainResult(run.path, "done", state.step, state.last_loss, eval_loss, speed, peak_memory_bytes())
    run.event("done", step=state.step, eval_loss=eval_loss)
    facts = {"train_loss": result.train_loss, "eval_loss": eval_loss, "tokens_per_second": speed, "error": None}
    run.set_status(
        "done",
        step=state.step,
        total=trainer.total_steps,
        peak_memory_bytes=result.peak_memory_bytes,
        epochs_asked=config.train.num_train_epochs,
        **facts,
    )
    return replace(result, train_loss=_finite(result.train_loss))


def _finite(value: float | None) -> float | None:
    return value if value is not None and value == value else None


def _publish(run: Path, source: Path, save_model: Callable[[Path], None]) -> None:
    """Put the final model at the root of the run directory: every file whole, weights last."""
    temporary = run / f"tmp-final-{os.getpid()}"
    temporary.mkdir()
    if source.is_dir():
        for file in source.iterdir():
            if file.name not in NOT_MODEL_FILES:
                shutil.copy2(file, temporary / file.name)
    else:
        save_model(temporary)
    for file in sorted(temporary.iterdir(), key=lambda p: p.suffix == ".safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        file.replace(run / file.name)
    temporary.rmdir()
    sync_folder(run)
