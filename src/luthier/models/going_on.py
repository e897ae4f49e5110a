"""What training needs of an adapter beyond what using it needs, in a file beside it: `training.safetensors`.

peft keeps of P-Tuning and of a reparameterized prefix only what the network made, not the network. And an adapter that
began as a part of the weights (PiSSA, OLoRA) is written as an ordinary one of twice the rank: W' + s B A with
W' = W - s B0 A0 equals W + s [B, -B0] [A; A0], so that it fits the weights that everybody has.
Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError
from luthier.models.reward_files import for_writing
from luthier.tuning.parts.starts import INITIAL, give_away, lora_layers

if TYPE_CHECKING:
    from pathlib import Path

FILE = "training.safetensors"
_WEIGHTS = "adapter_model.safetensors"
_FACTORS = ("A", "B", "A0", "B0")
_WHOLE = "whole|"
"""In front of the names of modules that learn whole."""


def _reparameterized(facts: dict[str, Any]) -> bool:
    return facts.get("peft_type") == "P_TUNING" or bool(facts.get("prefix_projection"))


def is_needed(folder: Path, facts: dict[str, Any], *, resume: bool) -> bool:
    """Tell whether peft alone cannot train on. Raises ModelError when nothing can."""
    there = (folder / FILE).is_file()
    if _reparameterized(facts) and not there:
        raise ModelError(
            f"adapter {folder} holds what its network made, but not the network ({FILE}), so it cannot be trained on; "
            "start a new one",
            code="model_adapter",
        )
    return "num_virtual_tokens" in facts or (there and resume)


def save(model: Any, name: str, folder: Path) -> None:
    """Write what is needed, if anything is, beside the adapter that peft wrote into `folder`."""
    config = model.peft_config[name]
    kept: dict[str, torch.Tensor] = {}
    if config.is_prompt_learning:
        if _reparameterized(config.to_dict()):
            kept = dict(model.prompt_encoder[name].state_dict())
    else:
        for path, module in _begun_in_weights(model):
            parts = module.lora_A[name].weight, module.lora_B[name].weight, *getattr(module, INITIAL)
            kept |= {f"{path}.{key}": x.detach() for key, x in zip(_FACTORS, parts, strict=True)}
    if not kept:
        return
    widened = {key.rpartition(".")[0] for key in kept}
    if not config.is_prompt_learning:
        kept |= {f"{_WHOLE}{name}": p.detach().clone() for name, p in _learning_whole(model).items()}
    facts = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    save_file({key: x.contiguous() for key, x in kept.items()}, folder / FILE, {"config": json.dumps(facts)})
    if not config.is_prompt_learning:
        _widen(folder, kept, widened, rslora=config.use_rslora)


def load(model: Any, folder: Path) -> Any:
    """Return `model` with the adapter in `folder`, ready to train on exactly where it was."""
    from peft import PeftConfig, get_peft_model

    facts, stored = _read(folder)
    config = PeftConfig.from_peft_type(**{**facts, "inference_mode": False})
    tuned: Any = get_peft_model(model, config)
    name = tuned.active_adapter
    if config.is_prompt_learning:
        tuned.prompt_encoder[name].load_state_dict(stored)
        return tuned
    for path, module in lora_layers(tuned):
        a_RI, b_OR, a0_RI, b0_OR = (stored[f"{path}.{key}"] for key in _FACTORS)
        give_away(module, a0_RI.to(module.get_base_layer().weight.device), b0_OR)
        module.lora_A[name].weight.data.copy_(a_RI)
        module.lora_B[name].weight.data.copy_(b_OR)
    for path, parameter in _learning_whole(tuned).items():
        parameter.data.copy_(stored[f"{_WHOLE}{path}"])
    return tuned


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return configuration and tensors to train on with; virtual tokens without a network are the whole of it."""
    if not (folder / FILE).is_file():
        facts = for_writing(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
        return facts, {"embedding.weight": load_file(folder / _WEIGHTS)["prompt_embeddings"]}
    with safe_open(folder / FILE, framework="pt") as file:
        return json.loads(file.metadata()["config"]), load_file(folder / FILE)


def add_start(model: Any, name: str) -> bool:
    """Add a frozen adapter called `name` of what the weights gave away; False where they gave nothing."""
    begun = _begun_in_weights(model)
    if not begun:
        return False
    learning = model.active_adapter
    model.add_adapter(name, model.peft_config[learning])
    for _, module in begun:
        a_RI, b_OR = getattr(module, INITIAL)
        module.lora_A[name].weight.data.copy_(a_RI)
        module.lora_B[name].weight.data.copy_(b_OR)
        module.lora_A[name].requires_grad_(False)
        module.lora_B[name].requires_grad_(False)
    model.set_adapter(learning)
    return True


def _begun_in_weights(model: Any) -> list[tuple[str, Any]]:
    return [(path, module) for path, module in lora_layers(model) if hasattr(module, INITIAL)]


def _learning_whole(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return what learns beside the low-rank parts: modules that are saved whole."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}


def _widen(folder: Path, kept: dict[str, torch.Tensor], paths: set[str], *, rslora: bool) -> None:
    """Rewrite the adapter as one of twice the rank on the weights as they were."""
    tensors = load_file(folder / _WEIGHTS)
    for path in paths:
        a_RI, b_OR, a0_RI, b0_OR = (kept[f"{path}.{key}"] for key in _FACTORS)
        tensors[f"{path}.lora_A.weight"] = torch.cat([a_RI, a0_RI]).contiguous()
        tensors[f"{path}.lora_B.weight"] = torch.cat([b_OR, -b0_OR], 1).contiguous()
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    file = folder / "adapter_config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    more = 2**0.5 if rslora else 2  # the scale, alpha / r or alpha / sqrt(r), stays
    facts |= {"r": 2 * facts["r"], "lora_alpha": more * facts["lora_alpha"]}
    facts["rank_pattern"] = {key: 2 * rank for key, rank in facts["rank_pattern"].items()}
    facts["alpha_pattern"] = {key: more * alpha for key, alpha in facts["alpha_pattern"].items()}
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
