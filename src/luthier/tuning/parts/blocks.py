"""Block expansion: copies of decoder layers that add nothing at first and learn alone (LLaMA Pro, arXiv:2401.02415)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.anatomy import decoder_layers, plain_model
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

MARK = "expanded_layers"
"""Where config.json keeps the numbers of the layers that were added."""
OUTPUTS = (
    "o_proj", "out_proj", "dense", "c_proj", "wo", "down_proj", "down_proj_bias", "fc2", "dense_4h_to_h", "w2",
)  # fmt: skip
"""What attention and feed-forward blocks end in: where it is 0, a layer hands its input on."""
_OF_EACH_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
_NUMBERS_OF_LAYERS = ("mlp_only_layers", "moe_layers")


def added(model: nn.Module) -> tuple[int, ...]:
    """Return the numbers of the layers that were added, as the model's config tells; none where it tells nothing."""
    return tuple(getattr(plain_model(model).config, MARK, None) or ())


def evenly(model: nn.Module, count: int) -> tuple[int, ...]:
    """Return the numbers of `count` layers that were added, from what is known of them, or else the last of each part.

    Raises ConfigError where the layers do not fall into `count` equal parts.
    """
    known, layers = added(model), len(decoder_layers(model))
    if known and len(known) == count:
        return known
    if known:
        raise ConfigError(f"use_llama_pro: {len(known)} layers were added to this model, but {count} shall learn; set "
                          f"freeze_trainable_layers: {len(known)}")  # fmt: skip
    if count < 1 or layers % count:
        raise ConfigError(
            f"use_llama_pro: the {layers} layers of this model do not fall into {count} equal parts, each with a layer "
            "that was added behind; set freeze_trainable_layers to how many were added, or expand_layers to add some"
        )
    stride = layers // count
    return tuple(range(stride - 1, layers, stride))


def expand(model: nn.Module, count: int) -> None:
    """Put `count` copies of layers in even distances into `model`, which answers as before.

    A model that has them already stays as it is. Raises ConfigError where its layers do not fall into `count` equal
    parts, or where its config cannot tell one layer from the other.
    """
    known = added(model)
    if known and len(known) != count:
        raise ConfigError(f"expand_layers is {count}, but {len(known)} layers were added to this model before")
    if known:
        return
    layers: Any = decoder_layers(model)
    before = len(layers)
    if before % count:
        raise ConfigError(f"expand_layers is {count}, but the {before} layers of this model do not fall into so many "
                          "equal parts")  # fmt: skip
    part = before // count
    origins = [i for i in range(before) for _ in range(2 if (i + 1) % part == 0 else 1)]
    new = tuple(range(part, before + count, part + 1))
    grown = [_silent(layers[i]) if place in new else layers[i] for place, i in enumerate(origins)]
    del layers[:]
    layers.extend(grown)
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    config = plain_model(model).config
    _tell(config.get_text_config(), origins)
    setattr(config, MARK, list(new))
    _check(plain_model(model))


def _silent(layer: Any) -> Any:
    """Return a copy of a layer that hands its input on."""
    made = copy.deepcopy(layer)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not set(name.split(".")).isdisjoint(OUTPUTS):
                parameter.zero_()
    return made


def _tell(config: Any, origins: list[int]) -> None:
    """Say in a transformers config which layer is a copy of which."""
    for key in _OF_EACH_LAYER:
        if value := getattr(config, key, None):
            setattr(config, key, [value[i] for i in origins])
    for key in _NUMBERS_OF_LAYERS:
        if value := getattr(config, key, None):
            setattr(config, key, [place for place, i in enumerate(origins) if i in value])
    if dense := getattr(config, "first_k_dense_replace", None):
        config.first_k_dense_replace = sum(i < dense for i in origins)
    config.num_hidden_layers = len(origins)


def _check(model: Any) -> None:
    """Raise ConfigError when a model made from the config would have other parameters or scales."""
    with torch.device("meta"):
        again = type(model)(copy.deepcopy(model.config))
    here, there = _facts(model), _facts(again)
    if here != there:
        name = sorted({name for name in here.keys() | there.keys() if here.get(name) != there.get(name)})[0]
        kind = model.config.model_type
        raise ConfigError(f"expand_layers: a {kind} model of more layers would differ at {name}; its kinds of layers "
                          "follow a rule that luthier does not know")  # fmt: skip


def _facts(model: Any) -> dict[str, Any]:
    """Return shapes of parameters and numbers that modules compute with, by path."""
    shapes: dict[str, Any] = {name: tuple(p.shape) for name, p in model.named_parameters()}
    numbers = {
        f"{path}.{key}": value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, float)
    }
    return shapes | numbers
