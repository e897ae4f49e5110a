"""A case of every tuning on the shelf, and models under it."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from luthier.models.patch import register_attention
from luthier.tuning.bottleneck import Bottleneck
from luthier.tuning.freeze import Freeze
from luthier.tuning.full import Full
from luthier.tuning.ia3 import Ia3
from luthier.tuning.lora import Lora
from luthier.tuning.oft import Oft
from luthier.tuning.prefix import Prefix, PTuningV2
from luthier.tuning.prompt import Prompt, PTuning
from luthier.tuning.vera import Vera

CASES = {
    "full": (Full(), lambda n: True),
    "freeze": (Freeze(layers=1), lambda n: "layers.1." in n),
    "freeze-first": (Freeze(layers=-1, modules=("mlp",)), lambda n: "layers.0.mlp" in n),
    "freeze-extra": (
        Freeze(layers=1, extra_modules=("norm",)),
        lambda n: "layers.1." in n or n == "model.norm.weight",
    ),
    "freeze-embeddings": (Freeze(layers=0, extra_modules=("embed_tokens",)), lambda n: "embed_tokens" in n),
    "lora": (Lora(rank=4), lambda n: "lora_" in n),
    "lora-named": (
        Lora(rank=4, targets=("q_proj", "v_proj"), alpha=6),
        lambda n: "lora_" in n and ("q_proj" in n or "v_proj" in n),
    ),
    "lora-patterns": (
        Lora(rank=4, rank_pattern={"mlp.down_proj": 2}, alpha_pattern={"q_proj": 3}),
        lambda n: "lora_" in n,
    ),
    "lora-saves": (
        Lora(rank=4, modules_to_save=("embed_tokens", "norm")),
        lambda n: "lora_" in n or "modules_to_save" in n,
    ),
    "gaussian": (Lora(rank=4, init="gaussian"), lambda n: "lora_" in n),
    "rslora": (Lora(rank=4, rslora=True), lambda n: "lora_" in n),
    "dora": (Lora(rank=4, dora=True), lambda n: "lora_" in n),
    "pissa": (Lora(rank=4, init="pissa"), lambda n: "lora_" in n),
    "pissa-exact": (
        Lora(rank=4, init="pissa", pissa_iterations=0, rslora=True, rank_pattern={"down_proj": 2}),
        lambda n: "lora_" in n,
    ),
    "pissa-saves": (
        Lora(rank=4, init="pissa", modules_to_save=("embed_tokens", "norm")),
        lambda n: "lora_" in n or "modules_to_save" in n,
    ),
    "olora": (Lora(rank=4, init="olora"), lambda n: "lora_" in n),
    "oft": (Oft(block_size=8), lambda n: "oft_" in n),
    "ia3": (Ia3(), lambda n: "ia3_" in n),
    "vera": (Vera(rank=16), lambda n: "vera_lambda" in n),
    "bottleneck": (Bottleneck(size=8), lambda n: "bottlenecks" in n),
    "bottleneck-pfeiffer": (Bottleneck(size=8, variant="pfeiffer", scale=0.5), lambda n: "mlp.bottlenecks" in n),
    "prompt": (Prompt(tokens=5), lambda n: "prompt_encoder" in n),
    "prompt-text": (Prompt(tokens=5, init="text", text="Be kind 🙂"), lambda n: "prompt_encoder" in n),
    "ptuning": (PTuning(tokens=5, hidden=16), lambda n: "prompt_encoder" in n),
    "ptuning-lstm": (PTuning(tokens=5, hidden=16, encoder="lstm"), lambda n: "prompt_encoder" in n),
    "prefix": (Prefix(tokens=5, hidden=8), lambda n: "prompt_encoder" in n),
    "prefix-random": (Prefix(tokens=5, hidden=8, init="random"), lambda n: "prompt_encoder" in n),
    "ptuning_v2": (PTuningV2(tokens=5), lambda n: "prompt_encoder" in n),
}
"""Name -> (tuning, which parameters it trains)."""
SMALL = {
    "full": (Full(), lambda n: True),
    "freeze": (Freeze(layers=1), lambda n: "layers.1." in n or ".h.1." in n),
    "lora": (Lora(rank=2), lambda n: "lora_" in n),
    "oft": (Oft(block_size=4), lambda n: "oft_" in n),
    "ia3": (Ia3(), lambda n: "ia3_" in n),
    "vera": (Vera(rank=4), lambda n: "vera_lambda" in n),
    "bottleneck": (Bottleneck(size=4), lambda n: "bottlenecks" in n),
    "prompt": (Prompt(tokens=3), lambda n: "prompt_encoder" in n),
    "ptuning": (PTuning(tokens=3, hidden=8), lambda n: "prompt_encoder" in n),
    "prefix": (Prefix(tokens=3, hidden=8), lambda n: "prompt_encoder" in n),
    "ptuning_v2": (PTuningV2(tokens=3), lambda n: "prompt_encoder" in n),
}
"""Name on the shelf -> (a tuning for any tiny model, which parameters it trains)."""
IDS = torch.arange(5, 30)[None]


def fresh(folder: Path, attention: str | None = None) -> Any:
    """The model in `folder`, frozen."""
    register_attention()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model.requires_grad_(False).eval()


def logits(model: Any) -> torch.Tensor:
    """Of the real tokens, whatever stands in front of them."""
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]


def stir(model: Any) -> Any:
    """The same model, whose learning parameters have moved."""
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))) * 0.02)
    return model.eval()


def stirred(name: str, folder: Path) -> Any:
    """A model under a tuning whose parameters have moved."""
    return stir(CASES[name][0].apply(fresh(folder)))
