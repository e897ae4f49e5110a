"""Train as a configuration says and return the run directory."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.config.load import dump
from luthier.config.optimizers import OPTIMIZER_SETTINGS
from luthier.core.anatomy import decoder_layers
from luthier.core.log import logger
from luthier.core.paths import write_whole
from luthier.core.registry import TUNINGS
from luthier.data.sources import find_sources
from luthier.kernels.cpu import prepare_process
from luthier.models.device import place
from luthier.models.load import (
    parameter_counts,
    resolve,
)
from luthier.models.recompute import Offload, recompute_layers
from luthier.runs.store import RunStore, read_events, read_status
from luthier.training.metrics import peak_memory_bytes
from luthier.training.optim import usual_rate
from luthier.training.reports import write_state
from luthier.training.stop import StopFlag, listening
from luthier.training.trackers import trackers
from luthier.training.trainer import Trainer, best_checkpoint
from luthier.workflows import reports
from luthier.workflows.build import transformers_config, with_template_words
from luthier.workflows.judges import judges_of
from luthier.workflows.memory import look_at, plan_memory, say
from luthier.workflows.parts import Parts, assemble
from luthier.workflows.run_directory import Holding, choose_run, publish
from luthier.workflows.sources import Rows, Source, open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.config.schema import RunConfig
    from luthier.training.state import TrainState

SETTINGS_THAT_MATTER = ("tuning", "objective", "model", "data")
LOOP_SETTINGS_THAT_MATTER = [
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    *OPTIMIZER_SETTINGS,
    "max_grad_norm",
    "neftune_noise_alpha",
    "seed",
    "warmup_ratio",
    "warmup_steps",
]
GUARDS = ("max_flat_steps", "max_resample_rounds", "too_few_groups", "reward_time_limit_seconds")
"""Settings of rollouts that may change when a run goes on: a run that they stopped is told to."""


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
    judges = judges_of(config)
    find_sources((*config.data.dataset, *config.data.eval_dataset), config.data)
    config = with_template_words(_with_learning_rate(config))
    prepare_process(config.model.threads)
    stop = StopFlag()
    torch.manual_seed(config.train.seed)
    accelerator = _accelerator(config, path)
    parts = assemble(config, resume)
    source = open_source(config, parts, accelerator, judges)
    _save_memory(config, parts, source)
    with (
        Holding(path, config, accelerator) as run,
        listening(stop, lambda n: run.set_status("stopped", stop_reason=f"signal {n}")),
    ):
        if accelerator.is_main_process:
            _write_audit(run, source)

        def save(folder: Path) -> None:
            parts.save_all(folder)
            write_state(folder, run.path, config.train, trainer.state.step, trainer.total_steps)

        feed = source.feed(run, stop=stop)
        trainer = Trainer(
            parts.policy,
            config.objective,
            config.train,
            rate_of=parts.rate_of,
            accelerator=accelerator,
            loader=feed.loader,
            eval_loader=feed.eval_loader,
            evaluator=feed.evaluator,
            updates_per_step=feed.updates_per_step,
            run=run,
            save_model=save,
            stop=stop,
            identity=_identity(config, source),
            reference=feed.reference,
            quiet=quiet,
        )
        feed.attend(trainer)
        logger.info("plan: %s, %d steps, %s", source.size, trainer.total_steps, source.per_step)
        if accelerator.is_main_process:
            reports.begin(run, config, resume.step if resume is not None else 0, trainer.total_steps)
        try:
            state = trainer.fit(resume)
            return _finish(config, run, trainer, state, parts.save_model)
        finally:
            feed.close()


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


# ---- around the parts


def _save_memory(config: RunConfig, parts: Parts, source: Source) -> None:
    """Recompute and offload as the settings say. Raises ConfigError when `memory_budget` cannot be met."""
    policy, recomputed = parts.policy, 0
    if config.train.gradient_checkpointing:
        recomputed = len(decoder_layers(policy.model))
    if (budget := config.train.memory_budget) is not None:
        assert isinstance(source, Rows), "a rule of the settings keeps rollouts away"
        every, learning = parameter_counts(policy.model)
        sizes = look_at(config, source.loader)
        plan = plan_memory(config, parts.placement, parts.base, policy.model, sizes, learning=learning, every=every)
        say(plan, budget)
        recomputed, policy.chunk_bytes = plan.recomputed, plan.chunk_bytes
    if recomputed:
        for each in (policy, policy.critic) if policy.critic is not None else (policy,):
            recompute_layers(each.model, recomputed)
    if config.train.offload_dir is not None:
        policy.offload = Offload(policy.model, Path(config.train.offload_dir))


def _accelerator(config: RunConfig, path: Path) -> Any:
    from accelerate import Accelerator

    on_cpu = place(config.model).device.type == "cpu"
    accelerator = Accelerator(
        cpu=on_cpu, gradient_accumulation_steps=1, log_with=trackers(config.train) or None, project_dir=str(path)
    )
    if config.train.tf32 is not None and not on_cpu:
        torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    return accelerator


def _write_audit(run: RunStore, source: Source) -> None:
    reports = {name: report.as_dict() for name, report in source.reports.items()}
    write_whole(run.path / "audit.json", json.dumps(reports, indent=1, ensure_ascii=False))


def _identity(config: RunConfig, source: Source) -> dict[str, Any]:
    """Return what must be equal for a resumed run to mean the same."""
    nested = dump(config)
    facts = {
        f"{s}.{k}": v for s in SETTINGS_THAT_MATTER for k, v in nested[s].items() if k not in ("threads", "dataset_dir")
    }
    facts |= {f"train.{k}": nested["train"][k] for k in LOOP_SETTINGS_THAT_MATTER}
    if "rollouts" in config.objective.needs:
        facts |= {f"rollout.{k}": v for k, v in nested["rollout"].items() if k not in GUARDS}
    if source.fingerprint is not None:
        facts["data"] = source.fingerprint
    return facts


# ---- the end


def _finish(
    config: RunConfig, run: RunStore, trainer: Trainer, state: TrainState, save_model: Callable[[Path], None]
) -> TrainResult:
    began = time.perf_counter()
    found = trainer.evaluate() if trainer.evaluate is not None else {}
    seconds = time.perf_counter() - began
    if found and all(event["step"] != state.step for event in read_events(run.path, "eval")):
        values = {f"eval_{name}": value for name, value in found.items()}
        run.event("eval", step=state.step, epoch=round(state.epoch, 4), at_end=True, **values)
    eval_loss = found.get("loss")
    source = (
        best_checkpoint(run.path, state.best_step) if config.train.load_best_model_at_end and state.best_step else None
    )
    if source is not None:
        logger.info("the result is %s, the best of all evaluations", source.name)
        by_loss = config.train.metric_for_best_model in (None, "loss", "eval_loss")
        eval_loss = None if eval_loss is None or not by_loss else state.best_loss
    if trainer.accelerator.is_main_process:
        publish(run.path, source or run.path / f"checkpoint-{state.step}", save_model)
        ranks = trainer.accelerator.num_processes
        reports.finish(run, config, state.step, trainer.total_steps, found, seconds, ranks)
    speed = round(state.tokens / trainer.seconds_training, 1) if trainer.seconds_training else None
    result = TrainResult(run.path, "done", state.step, state.last_loss, eval_loss, speed, peak_memory_bytes())
    run.event("done", step=state.step, eval_loss=eval_loss)
    facts = {"train_loss": result.train_loss, **{f"eval_{name}": value for name, value in found.items()}}
    facts |= {"eval_loss": eval_loss, "tokens_per_second": speed, "error": None}
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
