"""Verify adapters: as peft's folder, and as a GGUF file.

Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.progress import following, parts
from luthier.export.gguf import planned
from luthier.export.source import Source, Weight, file_weights
from luthier.export.verify.container import Container, check_container, check_reread
from luthier.export.verify.report import Check, Report, guarded, not_done
from luthier.export.verify.shards import check_files, check_weights
from luthier.export.verify.tensors import values_of
from luthier.models import bottleneck
from luthier.models.adapters import WEIGHTS, facts_of

if TYPE_CHECKING:
    from pathlib import Path


@parts(3)
def verify_adapter(folder: Path, *, trained: Path, base: str) -> Report:
    """Hold an adapter folder against the one that training wrote; `base`: folder or hub name of the model below."""
    files, weights = check_files(folder, "adapter_model")
    checks = [files]
    checks.append(guarded("weights", "", lambda: check_weights(weights, file_weights([trained / WEIGHTS]))))
    checks.append(guarded("settings", "", lambda: check_settings(folder, trained)))
    checks.append(guarded("opens in peft", "", lambda: check_opens(folder, weights, base)))
    return Report(folder.name, tuple(checks))


def check_settings(folder: Path, trained: Path) -> Check:
    """Compare adapter_config.json."""
    limit = "adapter_config.json says what training wrote"
    found, wanted = facts_of(folder), facts_of(trained)
    other = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    shown = f"{other[0]} is {found.get(other[0])!r}, should be {wanted.get(other[0])!r}" if other else (
        f"{len(wanted)} entries are equal")  # fmt: skip
    return Check("settings", not other, shown, limit, {"differ": len(other)})


def check_opens(folder: Path, weights: dict[str, Weight], base: str) -> Check:
    """See that plain peft, over an empty model of this kind, has a place for every tensor and nothing else."""
    limit = "plain peft has a place for every tensor, and a tensor for every place"
    facts = facts_of(folder)
    if facts.get("peft_type") == bottleneck.TYPE:
        return not_done("opens in peft", "bottleneck adapters are luthier's own, peft does not know them", limit)
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    grades = facts.get("task_type") == "SEQ_CLS"
    made: Any = AutoModelForSequenceClassification if grades else AutoModelForCausalLM
    labels = {"num_labels": 1} if grades else {}
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # how training began is no part of what it became
    with torch.device("meta"):
        shell = made.from_config(AutoConfig.from_pretrained(base, **labels))
        places: Any = get_peft_model_state_dict(get_peft_model(shell, config))
    wanted = {name: tuple(tensor.shape) for name, tensor in places.items()}
    found = {name: weight.shape for name, weight in weights.items()}
    # A resized vocabulary is kept whole beside the adapter.
    other = sorted(n for n in found.keys() ^ wanted.keys() if "embed_tokens" not in n and "lm_head" not in n)
    other += sorted(n for n in found.keys() & wanted.keys() if found[n] != wanted[n] and "modules_to_save" not in n)
    numbers = {"tensors": len(found), "differ": len(other)}
    shown = f"{len(other)} differ, the first is {other[0]}" if other else f"{len(found)} tensors find their place"
    return Check("opens in peft", not other, shown, limit, numbers)


# ---- GGUF


@parts(3)
def verify_gguf_adapter(path: Path, trained: Path, base: Source) -> Report:
    """Hold a GGUF adapter against peft's folder that it was made from, and the model that it is for."""
    check, container = check_container(path)
    checks = [check]
    if container is not None:
        checks.append(guarded("reread", "", lambda: check_reread(container)))
        checks.append(guarded("metadata", "", lambda: _check_kind(container, trained)))
        checks.append(guarded("weights", "", lambda: check_changes(container, trained, base)))
    checks.append(not_done("runs", "llama.cpp needs the base as a GGUF file beside it"))
    return Report(path.name, tuple(checks))


def _check_kind(container: Container, trained: Path) -> Check:
    limit = "a LoRA adapter, with its alpha"
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    wrong = [f"{k} is {container.get(k)!r}, should be {v!r}" for k, v in wanted.items() if container.get(k) != v]
    if not isinstance(container.get("adapter.lora.alpha"), float):
        wrong.append("adapter.lora.alpha is missing")
    return Check("metadata", not wrong, wrong[0] if wrong else f"alpha {container.get('adapter.lora.alpha'):g}", limit)


def check_changes(container: Container, trained: Path, base: Source) -> Check:
    """Compare what each adapter adds to each weight: scale x B x A, in the order of rows that llama.cpp has."""
    limit = "what it adds to every weight is what peft adds, within 1e-5 of the biggest number"
    changes = _changes(trained)
    plan = {each.name: each for each in planned(replace(base, weights={**base.weights, **changes}))}
    touched = {name for name, each in plan.items() if changes.keys() & set(each.sources)}
    halves = {name.rpartition(".lora_")[0] for name in container.tensors}
    missing = sorted(touched ^ halves)
    if missing:
        return Check("weights", False, f"{missing[0]} is changed by only one of the two", limit)
    alpha, worst, worst_name = container.get("adapter.lora.alpha"), 0.0, ""
    for name in following(sorted(touched)):
        a_RI, b_OR = (_whole(container, f"{name}.lora_{half}") for half in "ab")
        wanted = plan[name].read()
        gap = float((alpha / a_RI.shape[0] * b_OR @ a_RI - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        worst, worst_name = max((worst, worst_name), (gap if gap == gap else math.inf, name))
    found = f"{len(touched)} weights, the farthest is {worst_name} by {worst:.2g}"
    return Check("weights", worst <= 1e-5, found, limit, {"weights": len(touched), "worst": worst})


def _whole(container: Container, name: str) -> torch.Tensor:
    return torch.cat([numbers for _, numbers in values_of(container, container.tensors[name])])


def _changes(trained: Path) -> dict[str, Weight]:
    """Return what an adapter of peft adds to each weight, by the weight's name."""
    settings = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
    halves = file_weights([trained / WEIGHTS])
    found: dict[str, Weight] = {}
    for key, a in halves.items():
        path, mark, _ = key.removeprefix("base_model.model.").partition(".lora_A.")
        if mark:
            b = halves[key.replace(".lora_A.", ".lora_B.")]
            scale = _scale(settings, path, a.shape[0])
            shape = (b.shape[0], a.shape[1])
            found[f"{path}.weight"] = Weight(shape, torch.float32, lambda a=a, b=b, scale=scale: scale * (
                b.read().float() @ a.read().float()))  # fmt: skip
    return found


def _scale(settings: dict[str, Any], path: str, rank: int) -> float:
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((v for k, v in patterns.items() if path == k or path.endswith(f".{k}")), settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
