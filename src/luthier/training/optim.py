"""Parameter groups, optimizers, schedules."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.core.errors import ConfigError, DependencyError
from luthier.training.ruled import RULED, make_ruled, rule_of_each, settings_of

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
    config: TrainConfig,
    parameters: dict[str, nn.Parameter],
    rate_of: Callable[[str, float], float] = same_rate,
    *,
    model: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay acts on matrices, not on biases and norms.

    `rate_of`: name of a parameter and usual rate -> its own peak learning rate; `model`: whose parameters they are,
    which optimizers that tell layers and heads apart look at. Raises ConfigError or DependencyError.
    """
    rule_of = rule_of_each(config, parameters, model)
    groups: dict[tuple[float, bool, str], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        rate, is_matrix, rule = rate_of(name, config.learning_rate), parameter.ndim >= 2, rule_of(name)
        decay = config.weight_decay if is_matrix else 0.0
        facts = {"params": [], "lr": rate, "weight_decay": decay, **settings_of(rule, config)}
        groups.setdefault((rate, is_matrix, rule), facts)["params"].append(parameter)
    listed = list(groups.values())
    if config.optim in RULED:
        return make_ruled(config, listed, parameters, model)
    if config.optim in BITSANDBYTES:
        return _bitsandbytes(listed, config)
    return _OPTIMIZERS[config.optim](listed, config)


def _adamw(groups: list[dict[str, Any]], c: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=c.learning_rate, betas=(c.adam_beta1, c.adam_beta2), eps=c.adam_epsilon)


def _bitsandbytes(groups: list[dict[str, Any]], c: TrainConfig) -> torch.optim.Optimizer:
    name, facts = BITSANDBYTES[c.optim]
    if c.optim.startswith("paged") and groups[0]["params"][0].device.type == "cpu":
        raise ConfigError(
            f"optim: {c.optim} moves its state between the memory of a GPU and that of the machine, and there is no "
            f"GPU here; take {c.optim.removeprefix('paged_')}"
        )
    try:
        import bitsandbytes.optim
    except ImportError as error:
        raise DependencyError(f"{c.optim} needs bitsandbytes; run: pip install 'luthier[bitsandbytes]'") from error
    known = {"betas": (c.adam_beta1, c.adam_beta2), "eps": c.adam_epsilon}
    options = {each: known[each] for each in facts}
    return getattr(bitsandbytes.optim, name)(groups, lr=c.learning_rate, **options)


BITSANDBYTES: dict[str, tuple[str, tuple[str, ...]]] = {
    "adamw_8bit": ("AdamW8bit", ("betas", "eps")),
    "paged_adamw_32bit": ("PagedAdamW32bit", ("betas", "eps")),
    "paged_adamw_8bit": ("PagedAdamW8bit", ("betas", "eps")),
    "lion_32bit": ("Lion32bit", ("betas",)),
    "lion_8bit": ("Lion8bit", ("betas",)),
    "paged_lion_32bit": ("PagedLion32bit", ("betas",)),
    "paged_lion_8bit": ("PagedLion8bit", ("betas",)),
    "ademamix": ("AdEMAMix32bit", ("eps",)),
    "ademamix_8bit": ("AdEMAMix8bit", ("eps",)),
    "paged_ademamix_32bit": ("PagedAdEMAMix32bit", ("eps",)),
    "paged_ademamix_8bit": ("PagedAdEMAMix8bit", ("eps",)),
    "rmsprop_bnb_32bit": ("RMSprop32bit", ("eps",)),
    "rmsprop_bnb_8bit": ("RMSprop8bit", ("eps",)),
}
"""Name -> class of bitsandbytes and which settings of ours it takes; its own betas stay where they are three."""

_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]] = {
    "adamw_torch": _adamw,
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
