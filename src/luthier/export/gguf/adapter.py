"""A LoRA adapter of peft as a GGUF adapter, which llama.cpp puts on a base when it loads it.

llama.cpp multiplies by alpha / rank, with one alpha for the file: what a module's scale differs by is put into its B.
"""

from __future__ import annotations

import json
import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.export.gguf.architectures import ARCHITECTURES, obstacle
from luthier.export.gguf.cuts import Cut, key_in_pairs, query_in_pairs, whole
from luthier.export.gguf.plan import Planned, targets_of
from luthier.export.gguf.write import write_file
from luthier.export.source import Source, Weight, file_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
_MERGE = "Merge it first (export_format: gguf)"
_ROWS: tuple[Cut, ...] = (whole, query_in_pairs, key_in_pairs)
"""What only orders rows: B is ordered alike, A stays."""
_UNLIKE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_dora": (bool, "it scales the rows of the weights (DoRA)"),
    "lora_bias": (bool, "its B has biases"),
    "bias": (lambda value: value not in (None, "none"), "it trains biases"),
    "modules_to_save": (bool, "it holds whole modules (modules_to_save)"),
    "trainable_token_indices": (bool, "it holds rows of the embeddings (trainable_token_indices)"),
    "target_parameters": (bool, "it changes experts (target_parameters)"),
    "layer_replication": (bool, "it repeats layers (layer_replication)"),
    "fan_in_fan_out": (bool, "its weights lie on their side (fan_in_fan_out)"),
    "alora_invocation_tokens": (bool, "it is switched on by tokens (aLoRA)"),
    "use_qalora": (bool, "it pools its inputs (QA-LoRA)"),
    "use_bdlora": (bool, "its factors are block-diagonal (BD-LoRA)"),
    "arrow_config": (bool, "it is routed (Arrow)"),
    "kasa_config": (bool, "it is a KaSA adapter"),
    "velora_config": (bool, "it is a VeLoRA adapter"),
    "monteclora_config": (bool, "it is a MonteCLoRA adapter"),
}
"""Settings of peft that make an adapter more than B times A."""


def write_adapter_gguf(adapter_folder: Path, source_of_base: Source, out: Path) -> Path:
    """Write a LoRA folder of peft as a GGUF adapter for the base of `source_of_base`, in float32; whole or not at all.

    Raises ModelError with the reason where it is no plain LoRA or llama.cpp would not put it on.
    """
    facts = source_of_base.facts
    settings = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    why = obstacle(facts) or adapter_obstacle(settings, facts)
    if why:
        raise ModelError(f"the adapter {adapter_folder} has no GGUF form: {why}")
    pairs = _pairs(file_weights([adapter_folder / "adapter_model.safetensors"]), adapter_folder)
    scales = {module: _scale(settings, module, a.shape[0]) for module, (a, _) in pairs.items()}
    first = next(iter(pairs))
    alpha = scales[first] * pairs[first][0].shape[0]
    tensors = [
        half
        for module, (a, b) in pairs.items()
        for half in _halves(source_of_base, module, a, b, scales[module] * a.shape[0] / alpha)
    ]
    architecture = ARCHITECTURES[facts.model_type].name
    said = {
        "general.type": "adapter",
        "general.name": source_of_base.name,
        "general.file_type": 0,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    write_file(out, architecture, said, tensors, "f32")
    return out


def adapter_obstacle(settings: dict[str, Any], facts: Any) -> str | None:
    """Return why an adapter with these settings of peft has no GGUF form on such a base, or None."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"it is of kind {kind}; GGUF adapters are LoRA. {_MERGE}"
    found = next((said for key, (unlike, said) in _UNLIKE.items() if unlike(settings.get(key))), None)
    if found is None and not ARCHITECTURES[facts.model_type].adapters:
        found = f"llama.cpp leaves adapters out of the attention of {facts.model_type}"
    return found and f"{found}. {_MERGE}"


def _pairs(weights: dict[str, Weight], folder: Path) -> dict[str, tuple[Weight, Weight]]:
    """Return A and B of every module, by its name in the model."""
    halves: dict[str, dict[str, Weight]] = {}
    for name, weight in weights.items():
        match = _NAME.fullmatch(name)
        if "embed_tokens" in name:
            raise ModelError(f"the adapter {folder} has no GGUF form: it changes the embeddings. {_MERGE}")
        if match is None:
            raise ModelError(f"the adapter {folder} has no GGUF form: {name} is neither an A nor a B of a linear layer")
        halves.setdefault(match["module"], {})[match["half"]] = weight
    lonely = [module for module, found in halves.items() if found.keys() != {"A", "B"}]
    if lonely or not halves:
        what = f"{lonely[0]} has no pair of A and B" if lonely else "it has no tensors"
        raise ModelError(f"the adapter {folder} is damaged: {what}", code="model_damaged")
    return {module: (found["A"], found["B"]) for module, found in sorted(halves.items())}


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """Return what peft multiplies B times A by."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _halves(source: Source, module: str, a: Weight, b: Weight, more: float) -> list[Planned]:
    name = f"{module}.weight"
    base = source.weights.get(name)
    if base is None:
        raise ModelError(f"the adapter changes {module}, which the base {source.name} has not", code="model_unlike")
    targets = targets_of([name], source.facts)
    (target, [(_, cut)]) = next(iter(targets.items()))
    if len(targets) > 1 or cut not in _ROWS:
        raise ModelError(f"the adapter has no GGUF form: {module} stands there in another shape. {_MERGE}")
    if (b.shape[0], a.shape[1]) != base.shape:
        raise ModelError(
            f"the adapter makes {module} of shape {(b.shape[0], a.shape[1])}; in the base {source.name} "
            f"it has {base.shape}",
            code="model_unlike",
        )
    return [
        Planned(f"{target}.lora_a", a.shape, partial(_float, a)),
        Planned(f"{target}.lora_b", b.shape, partial(_rows, b, cut, more, source.facts)),
    ]


def _float(weight: Weight) -> Tensor:
    return weight.read().to(torch.float32).contiguous()


def _rows(weight: Weight, cut: Cut, more: float, facts: Any) -> Tensor:
    return (cut(weight.read().to(torch.float32), facts) * more).contiguous()
