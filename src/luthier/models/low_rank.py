"""LoRA adapters as additions to the products of a decoder, beside weights that stay the base's.

Shapes: I inputs, O outputs of a product (those of its modules end to end), R the ranks of its modules together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import plain_model
from luthier.core.errors import ModelError
from luthier.models.adapters import adapter_names
from luthier.tuning.parts.starts import INITIAL

if TYPE_CHECKING:
    from luthier.models.decoder_parts import Parts

PRODUCTS = ("qkv", "out", "gate_up", "down")
_BESIDE_THE_WEIGHTS = {"gaussian", "eva", "orthogonal", "mica"}
"""Starts of peft's that leave the weights below an adapter as they are; the others take a part out of them."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a product: x @ down @ up."""

    down_IR: Tensor
    up_RO: Tensor
    """Scale included."""


Adapter = list[dict[str, LowRank]]
"""Of each layer what is added, by product; a product that it leaves alone is missing."""


def read_adapter(model: Any, parts: Parts, name: str) -> Adapter:
    """Return what the adapter `name` of a peft model adds. Raises ModelError when it is more than plain LoRA there."""
    if name not in adapter_names(model):
        raise ModelError(f"no adapter is called {name!r}; there are: {', '.join(adapter_names(model)) or 'none'}")
    reached = {id(module) for layer in parts.layers for group in layer.linears.values() for module in group}
    why = _of_another_kind(model, name) or _changed_weights(model) or _more_than_added(model, name, reached)
    if why is not None:
        raise ModelError(
            f"adapter {name} cannot be put on the rows of a batch: {why}; serve it as a model of its own",
            code="model_adapter",
        )
    layers: Adapter = []
    for layer in parts.layers:
        found = {product: _joined(layer.linears[product], name) for product in PRODUCTS}
        layers.append({product: part for product, part in found.items() if part is not None})
    return layers


def _of_another_kind(model: Any, name: str) -> str | None:
    if not hasattr(model, "peft_config"):
        return "it consists of bottleneck networks"
    kind = model.peft_config[name].peft_type
    kind = getattr(kind, "value", kind)
    return None if kind == "LORA" else f"it is of the kind {kind}"


def _changed_weights(model: Any) -> str | None:
    """Return why the weights below the adapters are not the base's, or None. Any of the adapters may have done it."""
    from peft.tuners.lora import LoraLayer

    for name, config in model.peft_config.items():
        if getattr(config, "bias", "none") != "none":
            return f"{name} brings biases of the model itself (bias: {config.bias})"
        start = getattr(config, "init_lora_weights", True)
        if isinstance(start, str) and start.lower() not in _BESIDE_THE_WEIGHTS:
            return f"{name} began as a part of the weights ({start})"
    for path, module in plain_model(model).named_modules():
        if isinstance(module, LoraLayer) and module.merged:
            return f"{', '.join(module.merged_adapters)} is merged into {path}; unmerge it first"
        if hasattr(module, INITIAL):
            return f"{path} gave a part of itself to an adapter"
    return None


def _more_than_added(model: Any, name: str, reached: set[int]) -> str | None:
    from peft.tuners.lora import Linear, LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, each in plain_model(model).named_modules():
        module: Any = each
        if isinstance(module, AuxiliaryTrainingWrapper) and name in getattr(module, "_adapters", [name]):
            return f"it has {path} of its own"
        if not isinstance(module, LoraLayer) or name not in (*module.lora_A, *module.lora_embedding_A):
            continue
        if type(module) is not Linear or id(module) not in reached:
            return f"it changes {path}, which is no linear layer of attention or MLP"
        if name in module.lora_variant:
            return f"{path} is more than an addition (DoRA)"
        if module.lora_bias.get(name):
            return f"{path} has a bias of its own"
    return None


def _joined(modules: list[nn.Module], name: str) -> LowRank | None:
    """Return the additions of modules whose outputs stand end to end; each reaches its own columns only."""
    parts = [_of(module, name) for module in modules]
    found = [part for part in parts if part is not None]
    if not found:
        return None
    rank = sum(part.down_IR.shape[1] for part in found)
    sizes = [_base(module).out_features for module in modules]
    up_RO = torch.zeros(rank, sum(sizes))
    row = column = 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            count = part.down_IR.shape[1]
            up_RO[row : row + count, column : column + size] = part.up_RO
            row += count
        column += size
    device = found[0].down_IR.device
    return LowRank(torch.cat([part.down_IR for part in found], 1), up_RO.to(device))


def _base(module: Any) -> Any:
    return getattr(module, "base_layer", module)


def _of(module: Any, name: str) -> LowRank | None:
    if name not in getattr(module, "lora_A", ()):
        return None
    down, up = module.lora_A[name].weight.detach().float(), module.lora_B[name].weight.detach().float()
    return LowRank(down.t().contiguous(), (up.t() * module.scaling[name]).contiguous())
