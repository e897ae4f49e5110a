"""train_like: a trainer of TRL that is ready to train, trained by our own loop instead."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from luthier.core.anatomy import at_work, decoder_layers, packing_of, plain_model
from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.facade.like_rollouts import rollouts_of
from luthier.facade.like_rows import LikeLoader, read_like
from luthier.facade.like_settings import KINDS, config_of, objective_of, refuse_foreign
from luthier.kernels.cpu import prepare_process
from luthier.models.adapters import exchanged, save_trained, switched_off
from luthier.models.patch import FOREST, install, register_attention, remove
from luthier.models.policy import Policy
from luthier.models.recompute import recompute_layers
from luthier.models.reference import Reference
from luthier.runs.store import new_run_path
from luthier.training.metrics import peak_memory_bytes
from luthier.training.stop import StopFlag, listening
from luthier.training.trainer import Trainer
from luthier.workflows.run_directory import Holding
from luthier.workflows.sources import Feed
from luthier.workflows.train import TrainResult

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from luthier.config.schema import RunConfig

_REFERENCE = "ref"
_RECOMPUTING = ("gradient_checkpointing", "_gradient_checkpointing_func", "_can_checkpoint_with_cache")
"""What a layer has of its own while it is computed again."""


class Trained(NamedTuple):
    """What `train_like` returns."""

    model: Any
    """The trainer's own model, trained in place."""
    result: TrainResult


def train_like(trainer: Any) -> Trained:
    """Train what a trainer of TRL was given (model, rows, settings) with our own loop, in the trainer's order of rows.

    Takes SFTTrainer, DPOTrainer, ORPOTrainer, CPOTrainer, KTOTrainer, RewardTrainer, GRPOTrainer, and those made from
    them. The model learns in place; `trainer.state` has the log and the number of steps; a run directory lies in the
    trainer's output_dir. Raises ConfigError, before anything is changed, for whatever our loop has no counterpart for.
    """
    kind = _kind_of(trainer)
    refuse_foreign(trainer, kind)
    objective = objective_of(trainer, kind)
    folder = new_run_path(Path(trainer.args.output_dir), "luthier")
    config = config_of(trainer, kind, str(folder), objective)
    prepare_process(torch.get_num_threads())
    feed_of = rollouts_of(trainer) if kind == "GRPOTrainer" else _rows_of(trainer, config, kind)
    with _at_work(trainer.model, config), _float_head(trainer.model, kind) as head:
        policy = Policy(trainer.model, autocast=_autocast(trainer), value_head=head)
        return _run(trainer, config, policy, feed_of)


def _rows_of(trainer: Any, config: RunConfig, kind: str) -> Callable[..., Feed]:
    """Return what makes loaders over the rows that the trainer prepared."""
    units = read_like(trainer, trainer.train_dataset, kind)
    held_out = read_like(trainer, trainer.eval_dataset, kind) if config.train.eval_strategy != "no" else None
    torch.manual_seed(trainer.args.seed)
    loader = LikeLoader(units, _order_of(trainer), config.train.gradient_accumulation_steps)
    eval_loader: Any = None if held_out is None else LikeLoader(held_out, _in_turn(held_out, config), 1)
    return lambda config, policy, run, accelerator, reference: Feed(loader, eval_loader, reference)


def _kind_of(trainer: Any) -> str:
    for cls in type(trainer).__mro__:
        if cls.__name__ in KINDS and cls.__module__.startswith("trl."):
            return cls.__name__
    raise ConfigError(f"train_like takes a trainer of TRL ({', '.join(KINDS)}), and not a {type(trainer).__name__}")


def _run(trainer: Any, config: RunConfig, policy: Policy, feed_of: Callable[..., Feed]) -> Trained:
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs

    stop, began = StopFlag(), time.perf_counter()
    on_cpu = plain_model(trainer.model).device.type == "cpu"
    # The policy knows its number format; accelerate's own, left from the other trainer, would be a second one.
    accelerator = Accelerator(
        cpu=on_cpu,
        gradient_accumulation_steps=1,
        log_with=list(config.train.report_to) or None,
        project_dir=config.train.output_dir,
        kwargs_handlers=[AutocastKwargs(enabled=False)],
    )
    with (
        Holding(Path(str(config.train.output_dir)), config, accelerator) as run,
        listening(stop, lambda number: run.set_status("stopped", stop_reason=f"signal {number}")),
    ):
        run.listeners.append(partial(_take_down, trainer))
        reference = _reference(trainer, policy) if "reference" in config.objective.needs else None
        feed = feed_of(config, policy, run, accelerator, reference)
        loop = Trainer(
            policy,
            config.objective,
            config.train,
            rate_of=partial(_rate_of, trainer),
            accelerator=accelerator,
            loader=feed.loader,
            eval_loader=feed.eval_loader,
            run=run,
            save_model=partial(_save, trainer),
            stop=stop,
            identity={},
            reference=reference,
        )
        feed.attend(loop)
        logger.info("plan: %d steps", loop.total_steps)
        try:
            state = loop.fit()
        finally:
            feed.close()
        speed = round(state.tokens / loop.seconds_training, 1) if loop.seconds_training else None
        found = {"train_loss": state.last_loss, "eval_loss": state.last_eval_loss, "tokens_per_second": speed}
        run.set_status("done", step=state.step, total=loop.total_steps, peak_memory_bytes=peak_memory_bytes(), **found)
    trainer.state.global_step, trainer.state.epoch = state.step, state.epoch
    logger.info("trained %d steps in %.1f s", state.step, time.perf_counter() - began)
    return Trained(
        trainer.model, TrainResult(run.path, "done", state.step, **found, peak_memory_bytes=peak_memory_bytes())
    )


def _take_down(trainer: Any, event: dict[str, Any]) -> None:
    """Write what happened where scripts look for it."""
    if event.get("kind") in ("train", "eval"):
        trainer.state.log_history.append({name: value for name, value in event.items() if name not in ("kind", "seq")})


def _rate_of(trainer: Any, name: str, usual: float) -> float:
    own = getattr(trainer.args, "embedding_learning_rate", None)
    return own if own is not None and ".modules_to_save." in name else usual


def _save(trainer: Any, folder: Path) -> None:
    base = str(getattr(plain_model(trainer.model).config, "_name_or_path", ""))
    save_trained(trainer.model, folder, base)
    trainer.processing_class.save_pretrained(folder)


# ---- rows in their order


def _order_of(trainer: Any) -> Any:
    """Return what tells the batches of an epoch, as indices of rows, as the trainer's own sampler draws them."""
    loader = trainer.get_train_dataloader()

    def batches(epoch: int) -> list[list[int]]:
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        return [list(batch) for batch in loader.batch_sampler]

    return batches


def _in_turn(units: list[Any], config: RunConfig) -> Any:
    size = config.train.per_device_eval_batch_size
    return lambda _: [list(range(i, min(i + size, len(units)))) for i in range(0, len(units), size)]


# ---- the model while it learns


def _autocast(trainer: Any) -> torch.dtype | None:
    is_wide = plain_model(trainer.model).dtype == torch.float32
    return torch.bfloat16 if trainer.args.bf16 and is_wide else None


@contextmanager
def _at_work(model: Any, config: RunConfig) -> Generator[None]:
    """Put our kernels into the model, and recompute where that is asked for; afterwards it is as it was."""
    plain = plain_model(model)
    before, was_training = plain.config._attn_implementation, model.training
    brings = before != FOREST and packing_of(plain.config) == "forest"
    layers: Any = list(decoder_layers(model))
    kept = [{name: layer.__dict__[name] for name in _RECOMPUTING if name in layer.__dict__} for layer in layers]
    if brings:
        register_attention()
        plain.set_attn_implementation(FOREST)
        logger.info("kernels: %s", ", ".join(install(model)))
    if config.train.gradient_checkpointing:
        recompute_layers(model, len(layers))
    try:
        yield
    finally:
        for layer, own in zip(layers, kept, strict=True):
            for name in _RECOMPUTING:
                layer.__dict__.pop(name, None)
            layer.__dict__.update(own)
        if brings:
            remove(model)
            plain.set_attn_implementation(before)
        model.train(was_training)


@contextmanager
def _float_head(model: Any, kind: str) -> Generator[Any]:
    """Return the head that says rewards, in float32 while it learns; None where there is none."""
    if kind != "RewardTrainer":
        yield None
        return
    head = at_work(plain_model(model).score)
    before = head.weight.dtype
    head.float()
    try:
        yield head
    finally:
        head.to(before)


def _reference(trainer: Any, policy: Policy) -> Reference:
    """Return the trainer's reference: a model of its own, a copy of the adapter, or the adapter switched off."""
    model = trainer.model
    if trainer.ref_model is not None:
        own = trainer.accelerator.unwrap_model(trainer.ref_model)
        return Reference(lambda: Policy(own, autocast=policy.autocast), files=())
    if not hasattr(model, "peft_config"):
        raise ConfigError("train_like: the trainer has neither a ref_model nor an adapter that could be switched off")
    is_copy = _REFERENCE in model.peft_config
    borrow = partial(exchanged, model, _REFERENCE) if is_copy else partial(switched_off, model)
    return Reference(lambda: policy, files=(), borrow=borrow)
