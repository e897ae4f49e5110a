"""Virtual tokens of the prompt methods, as a root span that every segment of a packed batch goes on from.

Soft prompts (arXiv:2104.08691) and P-Tuning (arXiv:2103.10385) put learned vectors in front of the embeddings,
Prefix-Tuning (arXiv:2101.00190) learned keys and values in front of those of each layer. Each is computed once a batch.
Shapes: T computed tokens, P virtual tokens, D hidden, K key heads, C head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from luthier.core.batch import PackedBatch


class PrefixCache(Cache):
    """Keys and values that stand in front of those of each layer; unlike a cache of decoding it never grows."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        """`layers`: keys and values, [1, K, P, C] each."""
        super().__init__(layers=[])
        self.prefix = layers

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of the layer behind the prefix, [1, K, P + T, C]."""
        prefix_k, prefix_v = self.prefix[layer_idx]
        return (
            torch.cat([prefix_k.to(key_states.dtype), key_states], 2),
            torch.cat([prefix_v.to(value_states.dtype), value_states], 2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return P."""
        return self.prefix[layer_idx][0].shape[2]


@dataclass(frozen=True, slots=True)
class Virtual:
    """Learned vectors or a learned prefix, with the gradient of the parameters that they come from."""

    num_tokens: int
    vectors_PD: Tensor | None = None
    prefix: PrefixCache | None = None

    def inputs(self, model: nn.Module, batch: PackedBatch) -> dict[str, Any]:
        """Return what the backbone takes for `batch`, whose positions go on behind the virtual tokens."""
        own_P = torch.arange(self.num_tokens, device=batch.input_ids.device)
        positions_T = batch.position_ids + self.num_tokens
        if self.vectors_PD is None:
            return {
                "input_ids": batch.input_ids[None],
                "position_ids": positions_T[None],
                "past_key_values": self.prefix,
            }
        vectors_TD = plain_model(model).get_input_embeddings()(batch.input_ids)
        both = torch.cat([self.vectors_PD.to(vectors_TD.dtype), vectors_TD])
        return {"inputs_embeds": both[None], "position_ids": torch.cat([own_P, positions_T])[None]}

    @property
    def computed(self) -> int:
        """Return how many of the virtual tokens pass through the layers like others."""
        return 0 if self.vectors_PD is None else self.num_tokens


def virtual_tokens(model: Any) -> Virtual | None:
    """Return the virtual tokens of the active adapter of `model`; None when it has none or is switched off."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or model._adapters_disabled:
        return None
    count, prompt = config.num_virtual_tokens, model.get_prompt(batch_size=1)
    if isinstance(prompt, Tensor):
        return Virtual(count, vectors_PD=prompt[0])
    # Layers with a window keep its latest part only; what is in front of it is seen by nobody.
    parts = [(layer.keys, layer.values) for layer in prompt.layers]
    return Virtual(count, prefix=PrefixCache([(_filled(k, count), _filled(v, count)) for k, v in parts]))


def check_context(model: Any, cutoff_len: int) -> None:
    """Raise ConfigError when rows of `cutoff_len` tokens fit the context of `model`, but not behind virtual tokens."""
    count = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0)
    context = getattr(plain_model(model).config, "max_position_embeddings", None) or 0
    if cutoff_len <= context < cutoff_len + count:
        raise ConfigError(
            f"cutoff_len {cutoff_len} and {count} virtual tokens are more than the context of this model ({context}); "
            f"lower cutoff_len to {context - count}"
        )


@torch.no_grad()
def keys_and_values(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Return what a decoder has in front of every sequence: keys and values of each layer, [K, P, C] each.

    Empty when there are no virtual tokens.
    """
    virtual = virtual_tokens(model)
    if virtual is None:
        return []
    if virtual.prefix is not None:
        return [(k[0], v[0]) for k, v in virtual.prefix.prefix]
    assert virtual.vectors_PD is not None
    vectors = virtual.vectors_PD.to(plain_model(model).dtype)[None]
    layers = plain_model(model)(inputs_embeds=vectors, use_cache=True).past_key_values.layers
    return [(_filled(x.keys, virtual.num_tokens)[0], _filled(x.values, virtual.num_tokens)[0]) for x in layers]


def _filled(x: Tensor, count: int) -> Tensor:
    return F.pad(x, (0, 0, count - x.shape[2], 0)) if x.shape[2] < count else x
