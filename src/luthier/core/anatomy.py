"""Find a model's family, layers and linear modules, by fact or else by structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.log import say_once
from luthier.core.protocols import Family, Packing
from luthier.core.registry import FAMILIES

if TYPE_CHECKING:
    from torch import nn


def add_family(family: Family) -> None:
    """Put `family` on the shelf under each of its model types."""
    for model_type in family.model_types:
        FAMILIES.add(model_type, family)


def family_of(model_type: str) -> Family:
    """Return the facts about `model_type`; an unknown one gets no kernels and no packing, and that is said once."""
    if model_type in FAMILIES.names():
        return FAMILIES.get(model_type)
    say_once(
        f"model type {model_type!r} has no family facts: layers are found by structure, kernels stay off, and each "
        "segment of a batch is computed alone"
    )
    return Family(model_types=(model_type,), models="", lora_targets=(), packing="alone", kernels=())


def packing_of(config: Any) -> Packing:
    """Return how a model with this transformers config computes rows that hold several segments."""
    text = config.get_text_config()
    biased = getattr(text, "alibi", False)  # arXiv:2108.12409: a bias by index, which a mask does not carry
    return "alone" if biased else family_of(text.model_type).packing


def angles_move_from(config: Any) -> int | None:
    """Return the number of positions from which rotary angles depend on the length of a sequence; None for never.

    So it is with LongRoPE (arXiv:2402.13753) and dynamic NTK scaling, where a long row would turn the short ones too.
    """
    text = config.get_text_config()
    ropes: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    nested: list[dict[str, Any]] = [rope for rope in ropes.values() if isinstance(rope, dict)]
    for rope in [ropes, *nested]:
        kind = str(rope.get("rope_type"))
        if kind == "longrope":
            return int(rope["original_max_position_embeddings"])
        if "dynamic" in kind:
            return int(text.max_position_embeddings)
    return None


def plain_model(model: nn.Module) -> Any:
    """Return the transformers model inside a peft model, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def at_work(module: Any) -> Any:
    """Return the module that computes: the active copy where one learns beside the original (modules_to_save)."""
    copies = getattr(module, "modules_to_save", None)
    if copies is None:
        return module
    off = module.disable_adapters or not module.active_adapters
    return module.original_module if off else copies[module.active_adapters[0]]


def backbone_of(model: nn.Module) -> Any:
    """Return the decoder without its head. peft's own `base_model` is not it."""
    plain = plain_model(model)
    found: Any = plain.base_model
    return getattr(plain, "model", found) if found is plain else found


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


def attention_of(layer: nn.Module, family: Family) -> Any:
    """Return the attention module of a decoder layer. Raises ModelError when it has none by the family's name."""
    return _part(layer, family.attention, "attention")


def mlp_of(layer: nn.Module, family: Family) -> Any:
    """Return the feed-forward block or mixture of experts of a layer. Raises ModelError when there is none."""
    return _part(layer, family.mlp, "feed-forward block")


def _part(layer: nn.Module, name: str, what: str) -> Any:
    found = getattr(layer, name, None)
    if found is None:
        there = ", ".join(child for child, _ in layer.named_children())
        raise ModelError(f"a {type(layer).__name__} has no {what} called {name!r}; it has {there}")
    return found


def routers_of(model: nn.Module) -> list[Any]:
    """Return the routers of a mixture of experts, one for each layer that has one."""
    path = family_of(plain_model(model).config.model_type).router
    if not path:
        return []
    layers: Any = decoder_layers(model)
    by_path: list[dict[str, Any]] = [dict(layer.named_modules()) for layer in layers]
    return [modules[path] for modules in by_path if path in modules]


def expert_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of parameters that hold all experts of a layer, as peft's `target_parameters` takes them."""
    wanted = family_of(plain_model(model).config.model_type).experts
    layers: Any = decoder_layers(model)
    there: set[str] = {name for layer in layers for name, _ in layer.named_parameters()}
    return tuple(name for name in wanted if name in there)


def norm_names(model: nn.Module) -> list[str]:
    """Return the paths of all normalizations of `model`, inside and behind the layers."""
    plain: Any = model
    return [str(path) for path, module in plain.named_modules() if "Norm" in type(module).__name__]


def attention_window(attention: nn.Module) -> int | None:
    """Return how many of the latest positions a token of this attention layer sees, itself included; None for all."""
    module: Any = attention
    return getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))


def linear_names(model: nn.Module) -> dict[str, int]:
    """Map the name of each kind of linear layer in the decoder to its smaller side; head and routers are left out."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    family = family_of(plain_model(model).config.model_type)
    sizes: dict[str, int] = {}
    routers = {id(router) for router in routers_of(model)}
    layers: Any = decoder_layers(model)
    for path, module in layers.named_modules():
        name = path.rpartition(".")[2]
        if not isinstance(module, (nn.Linear, Conv1D)) or id(module) in routers:
            continue
        # A quantized layer knows its sizes; its weight may lie in another shape.
        linear = isinstance(module, nn.Linear)
        sides: Any = (module.in_features, module.out_features) if linear else module.weight.shape
        side = min(sides)
        # A gate with one output is a router of a kind: it weighs a shared expert.
        if side > 1 if not family.lora_targets else name in family.lora_targets:
            sizes[name] = min(side, sizes.get(name, 10**9))
    return sizes
