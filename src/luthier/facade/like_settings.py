"""Settings of a trainer of TRL -> ours; what has no counterpart is refused by name, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from luthier.config.rollout import RolloutConfig
from luthier.config.schema import DataConfig, ModelConfig, RunConfig
from luthier.config.training import Schedule, TrainConfig
from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.facade.like_rollouts import grpo_of, rollout_of
from luthier.objectives.cpo import Cpo
from luthier.objectives.dpo import Dpo
from luthier.objectives.kto import Kto
from luthier.objectives.orpo import Orpo
from luthier.objectives.rm import RewardModeling
from luthier.objectives.sft import Sft
from luthier.objectives.simpo import Simpo
from luthier.tuning.full import Full
from luthier.tuning.lora import Lora

_SAME = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "num_train_epochs", "max_steps", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "seed", "save_only_model", "eval_on_start", "gradient_checkpointing",
)  # fmt: skip
_OPTIMIZERS = {
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "adamw_8bit",
    "sgd": "sgd",
    "adafactor": "adafactor",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
}
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "label_smoothing_factor": (0.0, 0), "neftune_noise_alpha": (None,), "fp16": (False,), "torch_compile": (False,),
    "load_best_model_at_end": (False,), "resume_from_checkpoint": (None,), "push_to_hub": (False,),
    "deepspeed": (None,), "parallelism_config": (None,), "router_aux_loss_coef": (None, 0.0),
    "ld_alpha": (None,), "f_divergence_type": ("reverse_kl",), "use_weighting": (False,), "sync_ref_model": (False,),
    "precompute_ref_log_probs": (False,), "alpha": (0.0,), "optim_args": (None, ""), "optim_target_modules": (None,),
}  # fmt: skip

_LEFT_OUT = {
    "activation_offloading": "activations that wait are kept or computed again",
    "use_liger_kernel": "our kernels compute",
    "dataloader_num_workers": "rows are packed in this process, which takes milliseconds",
    "logging_first_step": "logging_steps says when",
    "padding_free": "rows are packed either way",
    "use_cache": "no cache is kept while training",
    "torch_empty_cache_steps": "memory is kept for the next step",
    "auto_find_batch_size": "the batch is as it is asked for",
}
"""Settings that change nothing of what is learned -> why they are not read."""


def refuse_foreign(trainer: Any, kind: str) -> None:
    """Raise ConfigError for everything about a trainer that our loop has no counterpart for."""
    args, found = trainer.args, list[str]()
    for name, harmless in _NOTHING.items():
        value = getattr(args, name, None)
        if name in vars(args) and value not in harmless:
            found.append(f"{name}={value!r}")
    if args.world_size > 1:
        found.append(f"{args.world_size} processes (start `luthier train` with torchrun instead)")
    if getattr(args, "fsdp", None):
        found.append(f"fsdp={args.fsdp!r}")
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
        if getattr(trainer, name, None) is not None:
            found.append(name)
    if trainer.optimizer is not None and trainer.state.global_step == 0:
        found.append("an optimizer of its own")
    own = [type(each).__name__ for each in trainer.callback_handler.callbacks if not _is_usual(each)]
    found += [f"the callback {name}" for name in own]
    adapters = getattr(trainer.model, "peft_config", {})
    if adapters and str(getattr(adapters["default"].peft_type, "value", "")) != "LORA":
        found.append(f"an adapter of the kind {adapters['default'].peft_type}")
    if not hasattr(trainer.train_dataset, "__len__"):
        found.append("a data set that is streamed")
    if isinstance(trainer.eval_dataset, Mapping) and args.eval_strategy != "no":
        found.append("several data sets for evaluation")
    if found:
        raise ConfigError(
            f"train_like: our loop has no counterpart for {'; '.join(found)}; leave it out, or call trainer.train()"
        )
    for name, why in _LEFT_OUT.items():
        if getattr(args, name, None):
            say_once(f"train_like: {name} is left out: {why}")


def _is_usual(callback: Any) -> bool:
    return type(callback).__module__.startswith(("transformers.", "luthier."))


def objective_of(trainer: Any, kind: str) -> Any:
    """Return the objective of a trainer. Raises ConfigError for a loss that the shelf has not."""
    return _OBJECTIVES[kind](trainer.args)


def config_of(trainer: Any, kind: str, folder: str, objective: Any) -> RunConfig:
    """Return the settings that a run directory is written with. Raises ConfigError for what cannot be had."""
    args, model = trainer.args, trainer.model
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in _OPTIMIZERS:
        raise ConfigError(f"train_like: optim={optimizer!r} is not on the shelf; there are {', '.join(_OPTIMIZERS)}")
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if scheduler not in get_args(Schedule):
        raise ConfigError(f"train_like: lr_scheduler_type={scheduler!r}; there are {', '.join(get_args(Schedule))}")
    evaluates = trainer.eval_dataset is not None and str(getattr(args.eval_strategy, "value", args.eval_strategy))
    train = TrainConfig(
        output_dir=folder,
        lr_scheduler_type=scheduler,  # pyright: ignore[reportArgumentType]  checked when the schedule is made
        lr_scheduler_kwargs=dict(args.lr_scheduler_kwargs or {}),
        optim=_OPTIMIZERS[optimizer],  # pyright: ignore[reportArgumentType]
        max_grad_norm=args.max_grad_norm or 0.0,
        logging_steps=_whole_steps(args.logging_steps, "logging_steps"),
        save_strategy=_when(args.save_strategy),  # pyright: ignore[reportArgumentType]
        save_steps=_whole_steps(args.save_steps, "save_steps"),
        save_total_limit=args.save_total_limit or 0,
        eval_strategy=_when(evaluates or "no"),  # pyright: ignore[reportArgumentType]
        eval_steps=_whole_steps(args.eval_steps or args.logging_steps, "eval_steps"),
        report_to=tuple(name for name in args.report_to if name != "none"),
        plot_loss=False,
        **{name: getattr(args, name) for name in _SAME},
    )
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    longest = getattr(args, "max_length", None) or model.config.get_text_config().max_position_embeddings
    return RunConfig(
        model=ModelConfig(model_name_or_path=name),
        data=DataConfig(cutoff_len=longest),
        tuning=_tuning(model),
        objective=objective,
        train=train,
        rollout=rollout_of(args) if "rollouts" in objective.needs else RolloutConfig(),
    )


def _whole_steps(value: float, name: str) -> int:
    if value < 1 or value != int(value):
        raise ConfigError(f"train_like: {name}={value} is a share of the steps; give a whole number of steps")
    return int(value)


def _when(strategy: Any) -> str:
    said = str(getattr(strategy, "value", strategy))
    if said == "best":
        raise ConfigError("train_like: save_strategy='best' has no counterpart; use 'steps' or 'epoch'")
    return said


def _tuning(model: Any) -> Any:
    adapter = getattr(model, "peft_config", {}).get("default")
    if adapter is None:
        return Full()
    targets = adapter.target_modules
    named = (targets,) if isinstance(targets, str) else tuple(sorted(targets or ()))
    return Lora(
        rank=adapter.r, alpha=adapter.lora_alpha, dropout=adapter.lora_dropout, targets=named,
        rslora=adapter.use_rslora, dora=adapter.use_dora, modules_to_save=tuple(adapter.modules_to_save or ()),
    )  # fmt: skip


# ---- objectives


def _sft(args: Any) -> Any:
    _only(args.loss_type, ("nll",))
    return Sft()


def _dpo(args: Any) -> Any:
    kinds = [args.loss_type] if isinstance(args.loss_type, str) else list(args.loss_type)
    weights = list(args.loss_weights or [1.0] * len(kinds))
    losses = dict(zip(kinds, weights, strict=True))
    sft = losses.pop("sft", 0.0)
    if len(losses) != 1 or next(iter(losses.values())) != 1.0:
        raise ConfigError(
            f"train_like: loss_type={kinds} with weights {weights}: one loss of weight 1, and 'sft' beside it"
        )
    (kind,) = losses
    _only(kind, ("sigmoid", "hinge", "ipo", "robust"))
    return Dpo(beta=args.beta, loss=kind, label_smoothing=args.label_smoothing, sft_weight=sft)  # pyright: ignore


def _orpo(args: Any) -> Any:
    say_once("orpo: the likelihood is that of the answer, as in the paper; TRL's takes in the prompt")
    return Orpo(beta=args.beta)


def _cpo(args: Any) -> Any:
    _only(args.loss_type, ("sigmoid", "hinge", "ipo", "simpo"))
    if args.loss_type == "simpo":
        say = {"beta": args.beta, "gamma": args.simpo_gamma, "sft_weight": args.cpo_alpha}
        return Simpo(**say, label_smoothing=args.label_smoothing)
    return Cpo(
        beta=args.beta, loss=args.loss_type, label_smoothing=args.label_smoothing, sft_weight=args.cpo_alpha
    )  # fmt: skip


def _kto(args: Any) -> Any:
    _only(args.loss_type, ("kto",))
    return Kto(beta=args.beta, desirable_weight=args.desirable_weight, undesirable_weight=args.undesirable_weight)


def _reward(args: Any) -> Any:
    return RewardModeling(centering=args.center_rewards_coefficient or 0.0)


def _only(found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ConfigError(f"train_like: loss_type={found!r} is not on the shelf; there are {', '.join(known)}")


_OBJECTIVES: Mapping[str, Callable[[Any], Any]] = {
    "SFTTrainer": _sft,
    "DPOTrainer": _dpo,
    "ORPOTrainer": _orpo,
    "CPOTrainer": _cpo,
    "KTOTrainer": _kto,
    "RewardTrainer": _reward,
    "GRPOTrainer": grpo_of,
}
KINDS = tuple(_OBJECTIVES)
"""Trainers that our loop can stand in for."""
