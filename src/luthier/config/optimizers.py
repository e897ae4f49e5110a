"""Settings of the optimizer: which one, its rates of forgetting, and what only some of them have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from luthier.config.values import Names, Positive, Share

NOT_HERE: dict[str, str] = {
    "adamw_torch_4bit": "torchao is not among the libraries used here; adamw_8bit keeps its state in 8 bits",
    "adamw_torch_8bit": "torchao is not among the libraries used here; adamw_8bit keeps its state in 8 bits",
    "adamw_torch_xla": "it is for TPUs, which luthier does not use; take adamw_torch",
    "adamw_torch_npu_fused": "it is for NPUs, which luthier does not use; take adamw_torch",
    "adamw_anyprecision": "its library (torchdistx) is no longer made; take adamw_torch",
    "galore_adamw_8bit": "GaLore here keeps its small state in 32 bits; take galore_adamw",
    "galore_adafactor": "GaLore here works on AdamW; take galore_adamw",
    "galore_adamw_8bit_layerwise": "GaLore here keeps its small state in 32 bits; take galore_adamw",
    "galore_adafactor_layerwise": "GaLore here works on AdamW; take galore_adamw",
    "lomo": "it cannot clip the gradient or accumulate it; badam or apollo_adamw need little memory, too",
    "adalomo": "it cannot clip the gradient or accumulate it; badam or apollo_adamw need little memory, too",
    "grokadamw": "no setting of it is known to help fine-tuning; take adamw_torch",
    "stable_adamw": "its library is not among those used here; adafactor clips its updates, too",
    "schedule_free_radam": "it replaces the schedule and keeps other weights for answers; take adamw_torch",
    "schedule_free_adamw": "it replaces the schedule and keeps other weights for answers; take adamw_torch",
    "schedule_free_sgd": "it replaces the schedule and keeps other weights for answers; take sgd",
}
"""Name that transformers knows and luthier does not -> why, and what to take."""


def _known(name: object) -> object:
    """Say of a name that transformers knows why it is not here."""
    if isinstance(name, str) and name in NOT_HERE:
        raise ValueError(NOT_HERE[name])
    return name


Optimizer = Annotated[
    Literal[
        "adamw_torch",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "lion_32bit",
        "lion_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "ademamix",
        "ademamix_8bit",
        "paged_ademamix_32bit",
        "paged_ademamix_8bit",
        "rmsprop_bnb_32bit",
        "rmsprop_bnb_8bit",
        "galore_adamw",
        "apollo_adamw",
        "badam",
        "adam_mini",
        "muon",
        "sgd",
        "adafactor",
        "rmsprop",
        "adagrad",
    ],
    BeforeValidator(_known),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Which optimizer makes updates of gradients, and how."""

    optim: Optimizer = "adamw_torch"
    """Optimizer; see docs/tuning.md. Names with 8bit or paged, lion and ademamix need bitsandbytes."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on matrices only."""
    adam_beta1: Share = 0.9
    """Decay of the first moment."""
    adam_beta2: Share = 0.999
    """Decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    galore_target: Names = ("all",)
    """Linear layers, or parts such as mlp, whose gradients are projected; all takes every layer of the decoder."""
    galore_rank: Positive = 16
    """Rank of the projected gradient."""
    galore_update_interval: Positive = 200
    """Steps between new projections."""
    galore_scale: Annotated[float, Field(gt=0)] = 2.0
    """Updates from the projected gradient are multiplied by this."""
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"
    """Side that is projected: std the shorter one, reverse_std the longer one, left rows, right columns, full both."""
    apollo_target: Names = ("all",)
    """Linear layers, or parts such as mlp, whose rates are estimated in a small space; all takes every one."""
    apollo_rank: Positive = 16
    """Rank of the space in which rates are estimated."""
    apollo_update_interval: Positive = 200
    """Steps between new projections."""
    apollo_scale: Annotated[float, Field(gt=0)] = 32.0
    """Updates are multiplied by the square root of this."""
    apollo_proj: Literal["random", "svd"] = "random"
    """Projections: drawn from a normal distribution, or singular vectors of the gradient."""
    apollo_proj_type: Literal["std", "left", "right"] = "std"
    """Side that is projected: std the shorter one, left rows, right columns."""
    apollo_scale_type: Literal["channel", "tensor"] = "channel"
    """One rate for each channel of a matrix (APOLLO), or for the whole of it (APOLLO-Mini)."""
    badam_mode: Literal["layer", "ratio"] = "layer"
    """What takes turns: decoder layers, or a share of the entries of every parameter."""
    badam_update_ratio: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the entries that learn at a time in badam_mode: ratio."""
    badam_mask_mode: Literal["adjacent", "scatter"] = "adjacent"
    """Which they are: entries in a row, or any."""
    badam_start_block: Annotated[int, Field(ge=0)] | None = None
    """Decoder layer that learns first; none takes that of the mode."""
    badam_switch_mode: Literal["ascending", "descending", "random", "fixed"] = "ascending"
    """Order in which layers learn; fixed stays at the first."""
    badam_switch_interval: Annotated[int, Field(ge=-1)] = 50
    """Steps that a layer or share learns before the next one does; -1 never switches."""


OPTIMIZER_SETTINGS = tuple(OptimizerConfig.__dataclass_fields__)
