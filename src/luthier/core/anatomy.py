"""Find a model's family, layers and linear modules, by fact or else by structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.log import say_once
from luthier.core.protocols import Family
from luthier.core.registry import FAMILIES

if TYPE_CHECKING:
    from torch import nn


def add_family(family: Family) -> None:
    """Put `family` on the shelf under each of its model types."""
    for model_type in family.model_types:
        FAMILIES.add(model_type, family)


def family_of(model_type: str) -> Family:
    """Return the facts about `model_type`; an unknown one gets no kernels, and that is said once."""
    if model_type in FAMILIES.names():
        return FAMILIES.get(model_type)
    say_once(f"model type {model_type!r} has no family facts: layers are found by structure and kernels stay off")
    return Family(model_types=(model_type,), lora_targets=(), kernels=())


def plain_model(model: nn.Module) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def backbone_of(model: nn.Module) -> Any:
    """Return the decoder without its head. peft's own `base_model` is not it."""
    return plain_model(model).base_model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers. Raises ModelError when no repeated block is found."""
    from torch import nn

    plain = plain_model(model)
    found: Any = backbone_of(model)
    for name in family_of(plain.config.model_type).layers.split("."):
        found = getattr(found, name, None)
    if isinstance(found, nn.ModuleList):
        return found
    lists = [module for module in plain.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        raise ModelError(f"no list of decoder layers in a {plain.config.model_type} model")
    return max(lists, key=len)


def attention_window(attention: nn.Module) -> int | None:
    """Return how many of the latest positions a token of this attention layer sees, itself included; None for all."""
    module: Any = attention
    return getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))


def linear_names(model: nn.Module) -> dict[str, int]:
    """Map the name of each kind of linear layer in the decoder to its smaller side; the head is left out."""
    from torch import nn

    plain = plain_model(model)
    wanted = family_of(plain.config.model_type).lora_targets
    sizes: dict[str, int] = {}
    layers: Any = decoder_layers(model)
    for path, module in layers.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Linear) and (not wanted or name in wanted):
            sizes[name] = min(module.in_features, module.out_features, sizes.get(name, 10**9))
    return sizes
