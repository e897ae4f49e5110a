"""Which tuning, quantization and kind of model do not go together, and why: one table for checks, tests and a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.core.anatomy import packing_of
from luthier.core.errors import ConfigError

QUANTIZATIONS = ("nf4", "fp4", "int8")
LATENT, ALONE, TRANSPOSED = "latent attention", "one segment at a time", "transposed linear layers"
"""Traits of models: keys and values from one small vector (arXiv:2405.04434); attention that takes no packed rows;
weights [inputs, outputs] as in GPT-2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Impossible:
    """Things that do not go together; what is empty means any."""

    tunings: tuple[str, ...]
    quantizations: tuple[str, ...] = ()
    trait: str = ""
    reason: str
    """Why, and what to do instead."""


IMPOSSIBLE: tuple[Impossible, ...] = (
    Impossible(
        tunings=("full", "freeze"),
        quantizations=QUANTIZATIONS,
        reason="quantized weights are frozen, but this tuning trains them; set finetuning_type: lora, or "
        "quantization: none",
    ),
    Impossible(
        tunings=("prefix", "ptuning_v2"),
        trait=LATENT,
        reason="latent attention has keys and values of different size, which a prefix cannot have; take prompt",
    ),
    Impossible(
        tunings=("prefix", "ptuning_v2"),
        trait=ALONE,
        reason="the attention of this model takes no mask of packed rows, which a prefix needs; take prompt",
    ),
    Impossible(
        tunings=("oft",),
        trait=TRANSPOSED,
        reason="peft turns the inputs of ordinary linear layers only, and this model stores them transposed; take lora",
    ),
)


def traits_of(config: Any) -> frozenset[str]:
    """Return what of a transformers config counts in the table."""
    text = config.get_text_config()
    found = {
        LATENT: hasattr(text, "kv_lora_rank"),
        ALONE: packing_of(text) == "alone",
        TRANSPOSED: text.model_type == "gpt2",
    }
    return frozenset(trait for trait, there in found.items() if there)


def refuse(tuning: str, model_config: Any) -> None:
    """Raise ConfigError when a tuning and a model with this transformers config do not go together."""
    reason = why_not(tuning, traits=traits_of(model_config))
    if reason is not None:
        raise ConfigError(f"{tuning}: {reason}")


def why_not(tuning: str, quantization: str = "none", traits: frozenset[str] = frozenset()) -> str | None:
    """Return why these do not go together, or None.

    >>> why_not("full", "nf4")[:28]
    'quantized weights are frozen'
    >>> why_not("lora", "nf4") is None
    True
    """
    for each in IMPOSSIBLE:
        hit = tuning in each.tunings and (not each.quantizations or quantization in each.quantizations)
        if hit and (not each.trait or each.trait in traits):
            return each.reason
    return None
