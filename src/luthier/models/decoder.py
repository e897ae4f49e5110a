"""The fastest decoder that runs here, from the parts of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.kernels import native
from luthier.kernels.cpu import give_pages_back
from luthier.models.decoder_parts import PAGE, Parts, Step, bias_of, weight_of
from luthier.models.decoder_plain import TorchDecoder
from luthier.models.low_rank import PRODUCTS, Adapter

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS_BETWEEN_PAGES = 8
WEIGHT_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
"""Form of packed weights -> its number in the C++ source."""


class NativeDecoder:
    """The whole pass in our own C++, weights re-laid once in the form `kind`."""

    def __init__(self, parts: Parts, kind: str) -> None:
        self._module = native.module()
        # The plain weights are not held: whoever holds the model decides about them.
        self._parts = replace(parts, layers=[], head=nn.Identity())
        self.cache_dtype = torch.float32 if kind == "float32" else torch.bfloat16
        self._decoder = self._module.Decoder(parts.facts | {"half_cache": self.cache_dtype == torch.bfloat16})
        for number, layer in enumerate(parts.layers):
            linears = {name: self._pack(modules, kind) for name, modules in layer.linears.items()}
            joined = {f"{name}_bias": _joined_bias(layer.linears[name]) for name in ("qkv", "out")}
            biases = {name: bias for name, bias in joined.items() if bias is not None}
            numbers = {"window": layer.window or 0, "angles": layer.angles}
            self._decoder.add_layer(linears | layer.gains | biases | numbers)
            if number % LAYERS_BETWEEN_PAGES == 0:
                give_pages_back()  # what merging left would lie beside what is packed
        self._decoder.finish(parts.embedding, parts.norm, self._pack([parts.head], kind), bias_of(parts.head))
        self._angles = parts.angles(512)

    def _pack(self, modules: Sequence[nn.Module], kind: str) -> Any:
        weights = [weight_of(module) for module in modules]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        return self._module.PackedLinear(whole, WEIGHT_KINDS[kind])

    def add_adapter(self, adapter: Adapter) -> int:
        """Keep what an adapter adds, and return the number that steps name it by."""
        none = None, None
        pairs = [
            [(layer[name].down_IR, layer[name].up_RO) if name in layer else none for name in PRODUCTS]
            for layer in adapter
        ]
        return self._decoder.add_adapter(pairs)

    def hidden(self, step: Step, pages: Tensor) -> Tensor:
        """Return what the last norm makes of the wanted rows, float32 [N, D]; writes into `pages`."""
        self._angles = self._parts.reach(self._angles, step.tables.shape[1] * PAGE)
        return self._decoder.hidden(
            step.ids, step.positions, step.sequences, step.tables, pages, self._angles, step.wanted, list(step.turns)
        )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return float32 logits [N, V] of what `hidden` returned."""
        return self._decoder.logits(hidden_ND)


def _joined_bias(modules: Sequence[nn.Module]) -> Tensor | None:
    """Return the biases end to end, zeros where a module has none; None when none has."""
    biases = [bias_of(module) for module in modules]
    if all(bias is None for bias in biases):
        return None
    linears: list[Any] = [getattr(module, "base_layer", module) for module in modules]
    sizes = [int(linear.out_features) for linear in linears]
    return torch.cat([torch.zeros(n) if b is None else b.float() for b, n in zip(biases, sizes, strict=True)])


def make_decoder(parts: Parts, kind: str) -> tuple[NativeDecoder | TorchDecoder, str]:
    """Return the fastest decoder that runs here, and what it is in words."""
    if parts.embedding.device.type != "cpu":
        return TorchDecoder(parts), f"torch on {parts.embedding.device.type}"
    reason = native.unusable()
    if reason is None:
        return NativeDecoder(parts, kind), f"C++, {kind} weights"
    own = str(parts.embedding.dtype).removeprefix("torch.")
    return TorchDecoder(parts), f"torch, {own} weights ({reason})"
