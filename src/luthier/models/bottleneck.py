"""Bottleneck adapters on disk: adapter_config.json and adapter_model.safetensors, as docs/formats.md describes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from luthier.core.anatomy import decoder_layers, plain_model
from luthier.core.errors import ModelError
from luthier.tuning.parts.bottleneck import attach, networks

if TYPE_CHECKING:
    from pathlib import Path

TYPE = "BOTTLENECK"
"""`peft_type` of the configuration, which peft itself does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What adapter_config.json says."""

    base_model_name_or_path: str
    variant: str
    size: int
    activation: str
    scale: float
    hidden_size: int
    num_layers: int
    peft_type: str = TYPE
    version: int = 1


def save(model: Any, name: str, folder: Path, base: str) -> None:
    """Write adapter `name` of `model` into `folder`."""
    found: dict[str, Any] = networks(model, name)
    first = next(iter(found.values()))
    config = Config(
        base_model_name_or_path=base,
        variant="houlsby" if any(where.endswith("attention") for where in found) else "pfeiffer",
        size=first.down.out_features,
        activation=first.activation_name,
        scale=first.scale,
        hidden_size=first.down.in_features,
        num_layers=len(decoder_layers(model)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    tensors = {f"{where}.{key}": x.contiguous() for where, n in found.items() for key, x in n.state_dict().items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def load(model: Any, folder: Path, name: str, *, trainable: bool) -> Any:
    """Put the adapter in `folder` behind the blocks of `model`. Raises ModelError when it was made for another one."""
    facts = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    try:
        config = Config(**facts)
    except TypeError as error:
        raise ModelError(
            f"{folder}/adapter_config.json is no bottleneck adapter: {error}", code="model_adapter"
        ) from error
    plain = plain_model(model)
    here = plain.config.hidden_size, len(decoder_layers(model))
    if (config.hidden_size, config.num_layers) != here:
        raise ModelError(
            f"adapter {folder} was made for {config.base_model_name_or_path}, with {config.num_layers} layers of "
            f"{config.hidden_size} numbers; this model has {here[1]} layers of {here[0]}",
            code="model_adapter",
        )
    attach(model, name, config.variant, config.size, config.activation, config.scale)
    stored = load_file(folder / "adapter_model.safetensors")
    for where, network in networks(model, name).items():
        part = {key.removeprefix(f"{where}."): x for key, x in stored.items() if key.startswith(f"{where}.")}
        with torch.no_grad():
            network.load_state_dict(part)
        network.requires_grad_(trainable)
    return model
