"""Train as a configuration says and return the run directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.config.load import dump
from luthier.core.anatomy import decoder_layers
from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.core.paths import write_whole
from luthier.core.registry import TUNINGS
from luthier.kernels.cpu import prepare_process
from luthier.models.adapters import is_adapter, load_adapter, save_trained
from luthier.models.device import Placement, place
from luthier.models.load import (
    ModelFiles,
    find,
    load_model,
    load_tokenizer,
    merge_in,
    parameter_counts,
    put_kernels,
    resolve,
)
from luthier.models.policy import Policy
from luthier.models.recompute import Offload, recompute_layers
from luthier.models.reference import Reference
from luthier.models.routing import check_balance
from luthier.models.virtual import check_context
from luthier.runs.store import RunStore, read_status
from luthier.training.metrics import peak_memory_bytes
from luthier.training.optim import usual_rate
from luthier.training.plot import plot_loss
from luthier.training.stop import StopFlag, listening
from luthier.training.trainer import Trainer, best_checkpoint
from luthier.workflows.build import Data, make_layout, make_loaders, make_preparer, read_data, transformers_config
from luthier.workflows.memory import look_at, plan_memory, say
from luthier.workflows.reference import make_reference, score_beforehand
from luthier.workflows.run_directory import Holding, choose_run, publish

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig
    from luthier.data.loader import Loader
    from luthier.training.checkpoint import Checkpoint
    from luthier.training.state import TrainState

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
    path, resume = choose_run(config)
    if resume is not None and (finished := _already_finished(path, config)):
        return finished
    config = _with_learning_rate(config)
    prepare_process(config.model.threads)
    stop = StopFlag()
    torch.manual_seed(config.train.seed)
    accelerator = _accelerator(config, path)
    parts = _assemble(config, resume)
    data = read_data(config, parts.preparer)
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    layout = make_layout(config, rank=rank, num_ranks=num_ranks)
    loader, eval_loader = make_loaders(config, data, parts.preparer, layout)
    _save_memory(config, parts, loader)
    with (
        Holding(path, config, accelerator) as run,
        listening(stop, lambda n: run.set_status("stopped", stop_reason=f"signal {n}")),
    ):
        if accelerator.is_main_process:
            _write_audit(run, data)
        reference = score_beforehand(config, data, loader, parts.reference, accelerator=accelerator, stop=stop)
        trainer = Trainer(
            parts.policy,
            config.objective,
            config.train,
            rate_of=config.tuning.learning_rate,
            accelerator=accelerator,
            loader=loader,
            eval_loader=eval_loader,
            run=run,
            save_model=parts.save_model,
            stop=stop,
            identity=_identity(config, data),
            reference=reference,
            quiet=quiet,
        )
        _log_plan(config, data, trainer)
        state = trainer.fit(resume)
        return _finish(config, run, trainer, state, parts.save_model)


def _with_learning_rate(config: RunConfig) -> RunConfig:
    """Fill in the usual learning rate where the settings give none."""
    if config.train.learning_rate:
        return config
    text = transformers_config(resolve(config.model.model_name_or_path), config).get_text_config()
    rate = usual_rate(config.tuning, config.objective, text.hidden_size)
    name = TUNINGS.name_of(config.tuning)
    logger.info("learning rate: %g, the usual one of %s at width %d", rate, name, text.hidden_size)
    return replace(config, train=replace(config.train, learning_rate=rate))


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
    reference: Reference | None
    placement: Placement
    base: str


def _assemble(config: RunConfig, resume: Checkpoint | None) -> _Parts:
    """Load the model, from the checkpoint when there is one, and put tuning and kernels on it."""
    placement = place(config.model, base_learns=config.tuning.base_learns)
    logger.info("device: %s", placement.reason)
    below, continued = _stack(config)
    files = below
    if resume is not None and not is_adapter(resume.path):
        files = ModelFiles(str(resume.path), public_base=below.public_base)
    tokenizer = load_tokenizer(files if continued is None else find(config.model), config.model)
    model = merge_in(load_model(files, config.model, placement), files.adapters)
    preparer = make_preparer(tokenizer, config, model.config.model_type)
    model = _tuned(model, config, continued, resume, below.public_base)
    check_context(model, config.data.cutoff_len)
    put_kernels(model, config.model)
    every, learning = parameter_counts(model)
    logger.info("model: %.1f M parameters, %.2f M learn (%.2f %%)", every / 1e6, learning / 1e6, 100 * learning / every)

    def save_model(folder: Path) -> None:
        save_trained(model, folder, below.public_base)
        tokenizer.save_pretrained(folder)

    balance = config.train.moe_aux_loss_coef > 0
    if balance:
        check_balance(model)
    policy = Policy(model, autocast=placement.autocast, balance=balance)
    reference = make_reference(config, policy, tokenizer, placement, (below, continued))
    return _Parts(policy, preparer, save_model, reference, placement, files.base)


def _save_memory(config: RunConfig, parts: _Parts, loader: Loader) -> None:
    """Recompute and offload as the settings say. Raises ConfigError when `memory_budget` cannot be met."""
    policy, recomputed = parts.policy, 0
    if config.train.gradient_checkpointing:
        recomputed = len(decoder_layers(policy.model))
    if (budget := config.train.memory_budget) is not None:
        every, learning = parameter_counts(policy.model)
        sizes = look_at(config, loader)
        plan = plan_memory(config, parts.placement, parts.base, policy.model, sizes, learning=learning, every=every)
        say(plan, budget)
        recomputed, policy.chunk_bytes = plan.recomputed, plan.chunk_bytes
    if recomputed:
        recompute_layers(policy.model, recomputed)
    if config.train.offload_dir is not None:
        policy.offload = Offload(policy.model, Path(config.train.offload_dir))


def _stack(config: RunConfig) -> tuple[ModelFiles, Path | None]:
    """Return the model that is trained on, and the adapter that training goes on with."""
    files = find(config.model)
    return (files, None) if config.model.create_new_adapter else (files.below, files.adapter)


def _tuned(model: Any, config: RunConfig, adapter: Path | None, resume: Checkpoint | None, base: str) -> Any:
    if resume is not None and is_adapter(resume.path):
        return load_adapter(model, resume.path, trainable=True, resume=True)
    if adapter is None:
        return config.tuning.apply(model)
    if config.tuning.base_learns:
        raise ConfigError(
            f"{adapter} is an adapter, but {type(config.tuning).__name__.lower()} tuning trains the model below it; "
            "set create_new_adapter: true to merge it first, or finetuning_type: lora to go on with it"
        )
    logger.info("continuing adapter %s with its own settings", adapter)
    return load_adapter(model, adapter, trainable=True, base=base)


def _accelerator(config: RunConfig, path: Path) -> Any:
    from accelerate import Accelerator

    on_cpu = place(config.model).device.type == "cpu"
    accelerator = Accelerator(
        cpu=on_cpu, gradient_accumulation_steps=1, log_with=list(config.train.report_to) or None, project_dir=str(path)
    )
    return accelerator


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
    found = trainer.evaluate() if trainer.evaluate is not None else {}
    eval_loss = found.get("loss")
    source = (
        best_checkpoint(run.path, state.best_step) if config.train.load_best_model_at_end and state.best_step else None
    )
    if source is not None:
        logger.info("the result is %s, with eval_loss %.4f", source.name, state.best_loss)
        eval_loss = state.best_loss
    if trainer.accelerator.is_main_process:
        publish(run.path, source or run.path / f"checkpoint-{state.step}", save_model)
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
