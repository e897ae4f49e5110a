"""What other engines refuse of an adapter that peft takes."""

from __future__ import annotations

from typing import Any

VLLM_RANK = 16
"""Most that vLLM takes unless it is started with --max-lora-rank."""


def vllm_notes(facts: dict[str, Any]) -> list[str]:
    """Return what vLLM does not take of an adapter with this adapter_config.json, a sentence each.

    Its rules: LoRA alone, one scale for all layers, neither biases nor whole modules (vllm/lora/peft_helper.py).
    """
    kind = facts.get("peft_type")
    if kind != "LORA":
        return [f"vLLM loads LoRA adapters only, and this one is {kind}: export it merged for vLLM"]
    ranks = [facts["r"], *(facts.get("rank_pattern") or {}).values()]
    refused = {
        "DoRA": facts.get("use_dora"),
        "whole modules beside it (modules_to_save)": facts.get("modules_to_save"),
        "biases": facts.get("bias", "none") != "none",
        "layers of different rank or alpha, which it would scale alike": facts.get("rank_pattern")
        or facts.get("alpha_pattern"),
    }
    found = [what for what, there in refused.items() if there]
    if found:
        return [f"vLLM takes no {' and no '.join(found)}: export it merged for vLLM"]
    if max(ranks) > VLLM_RANK:
        return [f"vLLM takes it when it is started with --max-lora-rank {max(ranks)}"]
    return []
