"""What happens to a tensor on its way from a Hugging Face file to a GGUF file.

A cut is a function of a tensor and the model's settings, made of torch operations alone: run on the meta device it
tells the shape. Shapes: E experts, H heads, C head size, D hidden, I inner, R rank of latent keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Cut = Callable[[Tensor, Any], Tensor]


def heads_of(facts: Any) -> int:
    """Return the number of query heads."""
    return facts.num_attention_heads


def key_heads_of(facts: Any) -> int:
    """Return the number of key heads."""
    return getattr(facts, "num_key_value_heads", None) or facts.num_attention_heads


def head_size_of(facts: Any) -> int:
    """Return the size of a query or key head."""
    return getattr(facts, "head_dim", None) or facts.hidden_size // facts.num_attention_heads


def whole(x: Tensor, facts: Any) -> Tensor:
    """Leave a tensor as it is."""
    return x


def _in_pairs(x: Tensor, heads: int) -> Tensor:
    """Put the two numbers that rotate together side by side: halves of a head become pairs."""
    return x.unflatten(0, (heads, 2, x.shape[0] // heads // 2)).transpose(1, 2).flatten(0, 2)


def query_in_pairs(x: Tensor, facts: Any) -> Tensor:
    """Order the rows of a query projection as rotary embedding of neighbours wants them."""
    return _in_pairs(x, heads_of(facts))


def key_in_pairs(x: Tensor, facts: Any) -> Tensor:
    """Order the rows of a key projection as rotary embedding of neighbours wants them."""
    return _in_pairs(x, key_heads_of(facts))


def plus_one(x: Tensor, facts: Any) -> Tensor:
    """Turn Gemma's norm, which multiplies by one and its weight, into one that multiplies by its weight."""
    return x.float() + 1


def gate_half(x: Tensor, facts: Any) -> Tensor:
    """Take the gates out of experts' fused projection, E x 2I x D."""
    return x.chunk(2, dim=1)[0]


def up_half(x: Tensor, facts: Any) -> Tensor:
    """Take what the gates multiply out of experts' fused projection, E x 2I x D."""
    return x.chunk(2, dim=1)[1]


def flat(x: Tensor, facts: Any) -> Tensor:
    """Make a vector of a matrix with one row."""
    return x.flatten()


def key_half(x: Tensor, facts: Any) -> Tensor:
    """Take the keys out of the projection from latent vectors, turned over: H x R x C."""
    nope, value = facts.qk_nope_head_dim, facts.v_head_dim
    return x.unflatten(0, (heads_of(facts), nope + value))[:, :nope].transpose(1, 2)


def value_half(x: Tensor, facts: Any) -> Tensor:
    """Take the values out of the projection from latent vectors: H x C x R."""
    nope, value = facts.qk_nope_head_dim, facts.v_head_dim
    return x.unflatten(0, (heads_of(facts), nope + value))[:, nope:]
