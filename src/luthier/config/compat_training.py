"""Keys of LLaMA-Factory and of transformers' TrainingArguments that say how to train: only the exceptions.

The tables have the same shape as those of `compat`, which takes them in.
"""

from __future__ import annotations

from typing import Any

RENAMED: dict[str, str] = {
    "label_smoothing_factor": "objective.label_smoothing_factor",
    "asft_alpha": "objective.asft_alpha",
    "eaft_alpha": "objective.eaft_alpha",
    "ld_alpha": "objective.ld_alpha",
}

SWITCHES: dict[str, tuple[str, Any]] = {
    "use_galore": ("train.optim", "galore_adamw"),
    "use_apollo": ("train.optim", "apollo_adamw"),
    "use_badam": ("train.optim", "badam"),
    "use_adam_mini": ("train.optim", "adam_mini"),
    "use_muon": ("train.optim", "muon"),
    "use_dft_loss": ("objective.token_loss", "dft"),
    "use_asft_loss": ("objective.token_loss", "asft"),
    "use_eaft_loss": ("objective.token_loss", "eaft"),
}

IGNORED: dict[str, str] = {
    "badam_verbose": "which layer learns follows from badam_switch_mode and the step",
    "badam_update_ratio": "it belongs to badam_mode: ratio",
    "badam_mask_mode": "it belongs to badam_mode: ratio",
    "apollo_scale_front": "the limiter compares norms of successive updates, which a constant factor does not change",
}

REFUSED: dict[str, str] = {
    "galore_layerwise": "updates inside the backward pass can neither clip nor accumulate gradients; leave it out",
    "apollo_layerwise": "updates inside the backward pass can neither clip nor accumulate gradients; leave it out",
}

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "badam_mode": (("layer",), "whole layers take turns here; set badam_mode: layer"),
}

YIELDS: dict[str, Any] = {"train.optim": "adamw_torch"}
