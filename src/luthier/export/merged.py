"""A model with its adapters merged, layer by layer while it is read: memory for one layer is enough.

peft's own layers do the merging, each inside an empty model that has nothing but this layer.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.errors import ModelError
from luthier.export.source import Source, Weight, file_weights, generation_of
from luthier.models import rope
from luthier.models.adapters import WEIGHTS, check_mergeable, facts_of
from luthier.models.foreign import Layout, read_layout
from luthier.models.load import load_tokenizer
from luthier.models.quantized import QuantizedLinear, targets
from luthier.models.quantized_files import open_weights, other_form, stored_form, unpack, weight_files
from luthier.models.reward_files import for_writing, is_reward_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from luthier.config.schema import ModelConfig
    from luthier.models.load import ModelFiles

PREFIX = "base_model.model."
_MARKS = (".lora_", ".ia3_", ".oft_")
_LAYERED = ("LORA", "IA3", "OFT")
"""Kinds of adapters in which every layer stands for itself."""


def read_merged(files: ModelFiles, config: ModelConfig, *, name: str) -> Source | str:
    """Return the merged model, unread; or in words why it can only be merged as a whole.

    Raises ModelError when an adapter is no part of weights at all.
    """
    for folder in files.adapters:
        check_mergeable(folder)
    if config.rope_scaling != "none":
        return "its positions are stretched"
    layout = read_layout(files.base, revision=config.model_revision, allow_remote_code=config.allow_remote_code)
    reason = _needs_whole(files, config, layout)
    if reason is not None:
        return reason
    for key, value in (fact for folder in files.adapters for fact in rope.read(folder).items()):
        setattr(layout.config, key, value)
    shell = _shell(layout.config)
    layout.config.architectures = [type(shell).__name__]
    weights = _base_weights(files, config, layout, shell)
    for folder in files.adapters:
        merged = _with_adapter(weights, folder, layout.config, shell)
        if isinstance(merged, str):
            return merged
        weights = merged
    return Source(
        name=name,
        facts=layout.config,
        tokenizer=load_tokenizer(files, config),
        generation=generation_of(files.base, config.model_revision),
        weights=weights,
    )


def _needs_whole(files: ModelFiles, config: ModelConfig, layout: Layout) -> str | None:
    if is_reward_model(files):
        return "a reward model has a head of its own"
    if layout.remote:
        return "its code comes with it"
    if other_form(layout.config) is not None:
        return "its base is quantized already"
    if config.quantization != "none" and config.quantization_backend == "bitsandbytes":
        return "its base is quantized by bitsandbytes"
    return None


def _shell(facts: Any) -> Any:
    """Return the model without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(facts))


# ---- below the adapters


def _base_weights(files: ModelFiles, config: ModelConfig, layout: Layout, shell: Any) -> dict[str, Weight]:
    stored = stored_form(layout.config)
    revision = config.model_revision
    if stored is None and layout.foreign is None and not config.allow_pickle:
        weights = file_weights(weight_files(files.base, revision=revision, allow_pickle=False))
    else:
        found = open_weights(files.base, revision=revision, allow_pickle=config.allow_pickle)
        if stored is not None:
            found = unpack(found, stored)
            del layout.config.quantization_config
        if layout.foreign is not None:
            found = layout.relay(found)
        shapes = {key: tuple(tensor.shape) for key, tensor in shell.state_dict().items()}
        dtype = _declared(layout.config)
        weights = {
            key: Weight(shapes[key], dtype, lambda tensor=tensor: tensor[...])
            for key, tensor in found.items()
            if key in shapes
        }
    return weights if config.quantization == "none" else weights | _narrowed(weights, config, shell)


def _declared(facts: Any) -> torch.dtype:
    return facts.dtype if isinstance(facts.dtype, torch.dtype) else torch.float32


def _narrowed(weights: Mapping[str, Weight], config: ModelConfig, shell: Any) -> dict[str, Weight]:
    """Return the weights that are quantized as what their codes stand for: that is what an adapter was trained on."""

    def dense(layer: nn.Module, weight: Weight) -> Tensor:
        made = QuantizedLinear.of(
            layer,
            config.quantization,
            double=config.double_quantization,
            dtype=torch.float32,
            weight=weight.read().float(),
        )
        return made.dense(torch.float32).weight.detach()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    return {
        f"{path}.weight": Weight(
            weights[f"{path}.weight"].shape,
            torch.float32,
            lambda layer=layer, weight=weights[f"{path}.weight"]: dense(layer, weight),
        )
        for path, layer in targets(shell).items()
        if f"{path}.weight" in weights
    }


# ---- adapters


def _with_adapter(weights: dict[str, Weight], folder: Path, facts: Any, shell: Any) -> dict[str, Weight] | str:
    """Return the weights with one more adapter merged, or why its layers cannot be merged one by one."""
    settings = facts_of(folder)
    if settings.get("peft_type") not in _LAYERED:
        return f"layers of {settings.get('peft_type')} share what they learned"
    unusual = [key for key in ("target_parameters", "trainable_token_indices") if settings.get(key)]
    if unusual or settings.get("bias", "none") != "none" or settings.get("lora_bias"):
        return f"its adapter has {unusual[0] if unusual else 'biases'}"
    parts = file_weights([folder / WEIGHTS])
    by_path: dict[str, dict[str, Weight]] = {}
    replaced: dict[str, Weight] = {}
    for key, part in parts.items():
        mark = next((mark for mark in _MARKS if mark in key), None)
        if mark is None:
            replaced[key.removeprefix(PREFIX)] = part
        else:
            by_path.setdefault(key.partition(mark)[0].removeprefix(PREFIX), {})[key] = part
    changed = {*replaced, *(f"{path}.weight" for path in by_path)}
    if facts.tie_word_embeddings and changed & _tied(shell):
        return "its adapter changes an embedding that is also the head"
    if strange := sorted(changed - weights.keys()):
        return f"{strange[0]} is stored under another name"
    if any(weights[name].shape != part.shape for name, part in replaced.items()):
        return "its vocabulary was resized"
    layers = {
        f"{path}.weight": Weight(
            weights[f"{path}.weight"].shape,
            torch.float32,
            lambda path=path, own=own: _merge_layer(shell, path, weights[f"{path}.weight"], own, settings),
        )
        for path, own in by_path.items()
    }
    return {**weights, **replaced, **layers}


def _tied(shell: Any) -> set[str]:
    both = {id(shell.get_input_embeddings()), id(shell.get_output_embeddings())}
    return {f"{path}.weight" for path, module in shell.named_modules() if id(module) in both}


def _merge_layer(
    shell: Any, path: str, weight: Weight, parts: Mapping[str, Weight], settings: dict[str, Any]
) -> Tensor:
    """Return one layer's weight with its part of an adapter merged, in float32."""
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict

    leaf: Any = copy.copy(shell.get_submodule(path))
    leaf._parameters = dict.fromkeys(leaf._parameters)
    leaf.weight = nn.Parameter(weight.read().float(), requires_grad=False)
    alone = _alone(path, leaf)
    alone.config = shell.config
    config = PeftConfig.from_peft_type(**{**for_writing(settings), "modules_to_save": None, "inference_mode": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # patterns for other layers match nothing here
        inject_adapter_in_model(config, alone)
    loaded = set_peft_model_state_dict(alone, {key: part.read() for key, part in parts.items()})
    layer: Any = alone.get_submodule(path)
    missing = [key for key in loaded.missing_keys if "base_layer" not in key]
    if loaded.unexpected_keys or missing or not hasattr(layer, "merge"):
        what = [*loaded.unexpected_keys, *missing, path][0]
        raise ModelError(f"the adapter does not fit {path}: {what}; copy it again", code="model_adapter")
    layer.merge()
    return layer.get_base_layer().weight.detach()


def _alone(path: str, leaf: nn.Module) -> Any:
    """Return an empty model with one module at `path`."""
    root = at = nn.Module()
    *above, last = path.split(".")
    for name in above:
        at.add_module(name, nn.Module())
        at = at.get_submodule(name)
    at.add_module(last, leaf)
    return root
