"""Parameter groups, optimizers, schedules."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.core.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.config.training import TrainConfig
    from luthier.core.protocols import Objective, Tuning

USUAL_WIDTH = 2000


def learning_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name, tied ones once. Raises ConfigError when there are none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ConfigError("no parameter learns under this tuning")
    return found


def is_of_critic(name: str) -> bool:
    """Tell by its name whether a parameter says values: of a critic, or of a second head on the policy."""
    return name.startswith(("critic.", "value_head."))


def usual_rate(tuning: Tuning, objective: Objective | None, hidden: int) -> float:
    """Return the peak learning rate for a model of this width where the settings give none; None: supervised rows.

    It falls with the width to the power 0.78, the exponent fitted for Llama models in "LoRA Without Regret" (Schulman
    and Thinking Machines Lab, 2025); the tuning knows its rate at width 2000.
    """
    usual = tuning.usual_rate * tuning.rate_factor() * (1.0 if objective is None else objective.rate_factor)
    return float(f"{usual * (USUAL_WIDTH / hidden) ** 0.78:.2g}")


def same_rate(parameter: str, usual: float) -> float:
    """Return the learning rate of the settings for every parameter."""
    return usual


def make_optimizer(
    config: TrainConfig, parameters: dict[str, nn.Parameter], rate_of: Callable[[str, float], float] = same_rate
) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay acts on matrices, not on biases and norms.

    `rate_of`: name of a parameter and usual rate -> its own peak learning rate.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        rate, is_matrix = rate_of(name, config.learning_rate), parameter.ndim >= 2
        decay = config.weight_decay if is_matrix else 0.0
        group = groups.setdefault((rate, is_matrix), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return _OPTIMIZERS[config.optim](list(groups.values()), config)


def _adamw(groups: list[dict[str, Any]], c: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=c.learning_rate, betas=(c.adam_beta1, c.adam_beta2), eps=c.adam_epsilon)


def _adamw_8bit(groups: list[dict[str, Any]], c: TrainConfig) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise DependencyError("adamw_8bit needs bitsandbytes; run: pip install 'luthier[bitsandbytes]'") from error
    return AdamW8bit(groups, lr=c.learning_rate, betas=(c.adam_beta1, c.adam_beta2), eps=c.adam_epsilon)


def _muon(groups: list[dict[str, Any]], c: TrainConfig) -> torch.optim.Optimizer:
    if any(p.ndim != 2 for group in groups for p in group["params"]):
        raise ConfigError(
            "optim: muon turns matrices only, but norms or biases learn too; use finetuning_type: lora, or adamw_torch"
        )
    return torch.optim.Muon(groups, lr=c.learning_rate, adjust_lr_fn="match_rms_adamw")


_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]] = {
    "adamw_torch": _adamw,
    "adamw_8bit": _adamw_8bit,
    "muon": _muon,
    "sgd": lambda groups, c: torch.optim.SGD(groups, lr=c.learning_rate),
    "adafactor": lambda groups, c: torch.optim.Adafactor(groups, lr=c.learning_rate),
    "rmsprop": lambda groups, c: torch.optim.RMSprop(groups, lr=c.learning_rate, eps=c.adam_epsilon),
    "adagrad": lambda groups, c: torch.optim.Adagrad(groups, lr=c.learning_rate),
}


def warmup_steps(config: TrainConfig, total_steps: int) -> int:
    """Return optimizer steps of warm-up. Raises ConfigError when they fill the whole run."""
    asked = config.warmup_steps or config.warmup_ratio
    steps = ceil(asked * total_steps) if asked < 1 else int(asked)
    if steps > total_steps:
        raise ConfigError(f"warm-up takes {steps} steps, the whole run only {total_steps}; lower warmup_steps")
    return steps


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """Return the learning-rate schedule. Raises ConfigError when lr_scheduler_kwargs do not fit it."""
    from transformers import get_scheduler

    name, options = config.lr_scheduler_type, dict(config.lr_scheduler_kwargs)
    try:
        return get_scheduler(name, optimizer, warmup_steps(config, total_steps), total_steps, options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"lr_scheduler_type {name} with lr_scheduler_kwargs {options}: {error}") from error
