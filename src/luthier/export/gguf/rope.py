"""Rotary embedding: what a GGUF file says of it, and the tensors of factors that some scalings need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.export.gguf.cuts import head_size_of

if TYPE_CHECKING:
    from collections.abc import Callable

Metadata = dict[str, Any]


def parameters(facts: Any, kind: str = "full_attention") -> dict[str, Any]:
    """Return the rope parameters; those of full attention where layers differ."""
    found = facts.rope_parameters
    return found.get(kind) or found


def rotary_size(facts: Any) -> int:
    """Return how many numbers of a head rotate."""
    if getattr(facts, "qk_rope_head_dim", None):
        return facts.qk_rope_head_dim
    return int(head_size_of(facts) * parameters(facts).get("partial_rotary_factor", 1.0))


def rope_obstacle(facts: Any, scalings: tuple[str, ...]) -> str | None:
    """Return why the scaling of `facts` cannot be said to llama.cpp, or None."""
    rope = parameters(facts)
    kind = rope["rope_type"]
    if kind not in ("default", "dynamic", *scalings):
        return f"rope scaling {kind!r} is not computed there"
    return _yarn_obstacle(rope, facts) if kind == "yarn" else None


def _yarn_obstacle(rope: dict[str, Any], facts: Any) -> str | None:
    if not rope.get("truncate", True):
        return "yarn without truncation (truncate: false) is not computed there"
    betas = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    if betas != (32, 1):
        return f"yarn with beta_fast {betas[0]} and beta_slow {betas[1]} is computed there as with 32 and 1"
    latent = getattr(facts, "kv_lora_rank", None) is not None
    both = rope.get("mscale"), rope.get("mscale_all_dim")
    if both[0] != both[1] or (latent and not all(both)) or (latent and rope.get("attention_factor") is not None):
        return f"yarn with mscale {both[0]} and mscale_all_dim {both[1]} is not computed there"
    return None


def rope_metadata(facts: Any) -> Metadata:
    """Return the keys below `<architecture>.rope.`; each is written, also where it is llama.cpp's default."""
    rope = parameters(facts)
    base = {"dimension_count": rotary_size(facts), "freq_base": float(rope["rope_theta"])}
    return {**base, **_SCALINGS[rope["rope_type"]](rope, facts)}


def original_context(rope: dict[str, Any], facts: Any) -> int:
    """Return the context before scaling."""
    return int(
        rope.get("original_max_position_embeddings")
        or getattr(facts, "original_max_position_embeddings", None)
        or facts.max_position_embeddings
    )


def factor_tensors(facts: Any) -> dict[str, Tensor]:
    """Return the tensors by which frequencies are divided, by their names; most scalings need none."""
    rope = parameters(facts)
    return _FACTORS.get(rope["rope_type"], lambda rope, facts: {})(rope, facts)


def _unscaled(rope: dict[str, Any], facts: Any) -> Metadata:
    # The dynamic kind changes nothing up to the context that the file says.
    return {"scaling.type": "none"}


def _linear(rope: dict[str, Any], facts: Any) -> Metadata:
    return {"scaling.type": "linear", "scaling.factor": float(rope["factor"])}


def _yarn(rope: dict[str, Any], facts: Any) -> Metadata:
    factor = float(rope["factor"])
    said: Metadata = {
        "scaling.type": "yarn",
        "scaling.factor": factor,
        "scaling.original_context_length": original_context(rope, facts),
        "scaling.yarn_beta_fast": 32.0,
        "scaling.yarn_beta_slow": 1.0,
    }
    if getattr(facts, "kv_lora_rank", None) is not None:
        return {**said, "scaling.yarn_log_multiplier": 0.1 * float(rope["mscale_all_dim"])}
    # llama.cpp multiplies by a factor of its own, which transformers' may differ from.
    return {**said, "scaling.attn_factor": _computed("yarn", facts)[1] / (0.1 * math.log(factor) + 1)}


def _longrope(rope: dict[str, Any], facts: Any) -> Metadata:
    return {
        "scaling.type": "longrope",
        "scaling.original_context_length": original_context(rope, facts),
        "scaling.attn_factor": _computed("longrope", facts)[1],
    }


_SCALINGS: dict[str, Callable[[dict[str, Any], Any], Metadata]] = {
    "default": _unscaled,
    "dynamic": _unscaled,
    "llama3": _unscaled,
    "linear": _linear,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _computed(kind: str, facts: Any) -> tuple[Tensor, float]:
    """Return the frequencies and the attention factor that transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](facts, device=torch.device("cpu"))
    return frequencies, float(factor)


def _of_llama3(rope: dict[str, Any], facts: Any) -> dict[str, Tensor]:
    scaled, _ = _computed("llama3", facts)
    size = rotary_size(facts)
    plain = 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size))
    return {"rope_freqs.weight": plain / scaled}


def _of_longrope(rope: dict[str, Any], facts: Any) -> dict[str, Tensor]:
    return {
        "rope_factors_long.weight": torch.tensor(rope["long_factor"], dtype=torch.float32),
        "rope_factors_short.weight": torch.tensor(rope["short_factor"], dtype=torch.float32),
    }


_FACTORS: dict[str, Callable[[dict[str, Any], Any], dict[str, Tensor]]] = {
    "llama3": _of_llama3,
    "longrope": _of_longrope,
}
