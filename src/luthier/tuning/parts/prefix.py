"""A prefix that begins as the keys and values of real tokens.

Shapes: P virtual tokens, L layers, K key heads, C head size, H hidden size of the network, W = L * 2 * K * C.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.anatomy import backbone_of
from luthier.core.errors import ConfigError


@torch.no_grad()
def activations(plain: Any, ids_P: Tensor) -> Tensor:
    """Return keys and values of real tokens in peft's order, [P, L * 2, K, C]."""
    inputs = {"input_ids": ids_P[None].to(plain.device), "use_cache": True}
    cache, count = backbone_of(plain)(**inputs).past_key_values, len(ids_P)
    # Layers with a window keep the latest tokens only; the others of such a layer begin as zeros.
    parts = [x[0] for layer in cache.layers for x in (layer.keys, layer.values)]
    filled = [torch.nn.functional.pad(x_KPC, (0, 0, count - x_KPC.shape[1], 0)) for x_KPC in parts]
    return torch.stack(filled).permute(2, 0, 1, 3).float()


def prefix_size(plain: Any) -> int:
    """Return the numbers of a layer's keys for one token, K * C, as the model's own cache has them."""
    _, _, heads, size = activations(plain, torch.zeros(1, dtype=torch.long)).shape
    return heads * size


def tokens_of(plain: Any, count: int, text: str) -> Tensor:
    """Return ids of `text`, repeated or cut to `count`; random ones where it is empty."""
    if not text:
        return torch.randint(plain.config.vocab_size, (count,))
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(plain.name_or_path)(text, add_special_tokens=False).input_ids
    return torch.tensor((ids * count)[:count])


@torch.no_grad()
def begin_with(encoder: Any, start_PW: Tensor) -> None:
    """Make the encoder of a prefix return `start_PW`: set it, or solve for the last layer of its network."""
    if not encoder.prefix_projection:
        encoder.embedding.weight.copy_(start_PW)
        return
    *front, last = encoder.transform
    _solve(torch.nn.Sequential(*front)(encoder.embedding.weight), last, start_PW)


@torch.no_grad()
def begin_vectors_with(encoder: Any, start_PD: Tensor) -> None:
    """Make the network of P-Tuning return `start_PD` by solving for its last layer."""
    inner_PH = encoder.embedding.weight
    if hasattr(encoder, "lstm_head"):
        inner_PH = encoder.lstm_head(inner_PH[None])[0][0]
    *front, last = encoder.mlp_head
    _solve(torch.nn.Sequential(*front)(inner_PH), last, start_PD)


def _solve(inner_PH: Tensor, last: torch.nn.Linear, start_PW: Tensor) -> None:
    """Set the weight of `last` so that it makes `start_PW` of `inner_PH`, the smallest one that does."""
    if inner_PH.shape[1] < len(inner_PH):
        raise ConfigError(
            f"hidden is {inner_PH.shape[1]}, below the {len(inner_PH)} virtual tokens, so that the start cannot be "
            "reached; raise hidden, or set init: random"
        )
    start_PW = start_PW.to(inner_PH.device, inner_PH.dtype)
    # By least squares with the singular values: units of a network may say nearly the same.
    last.weight.copy_(torch.linalg.lstsq(inner_PH.cpu(), start_PW.cpu(), driver="gelsd").solution.T)
    last.bias.zero_()
