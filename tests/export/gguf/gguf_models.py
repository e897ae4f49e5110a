"""Tiny random models in the forms that llama.cpp computes, with a tokenizer whose every token is text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from helpers import CHATML, TINY_CONFIGS

from luthier.export.gguf.architectures import ARCHITECTURES
from luthier.export.source import Source, Weight

_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_LATENT_YARN = {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16}  # fmt: skip
_TURNS = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
_NO_WINDOW = {"sliding_window": None}
_FOUR = {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "layer_types": ["full_attention"] * 4}
_BY_KIND = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip


def _longrope(original: int) -> dict[str, Any]:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0], "original_max_position_embeddings": original}  # fmt: skip
    return {"rope_parameters": rope, "original_max_position_embeddings": original, "max_position_embeddings": 1024}


def _rope(**rope: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **rope}}


FORMS_OF_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, with biases": ("llama_tied", {"mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, linear": ("llama", _rope(rope_type="linear", factor=4.0)),
    "llama, dynamic": ("llama", _rope(rope_type="dynamic", factor=4.0)),
    "llama, yarn": ("llama", {"rope_parameters": {**_YARN, "attention_factor": 1.7}}),
    "llama, longrope, long": ("llama", _longrope(16)),
    "llama, longrope, short": ("llama", _longrope(300)),
    "granite, longrope, long": ("granite", _longrope(16)),
    "mistral": ("mistral", _NO_WINDOW),
    "mixtral": ("mixtral", _NO_WINDOW),
    "internlm3": ("internlm3", {}),
    "smollm3": ("smollm3", _FOUR),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": (
        "qwen2",
        {"rope_parameters": {**_YARN, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}},
    ),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, wide heads, yarn": ("qwen3", {"head_dim": 16, "rope_parameters": _YARN}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": [], "norm_topk_prob": True}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3", _TURNS),
    "gemma3, linear": ("gemma3", {**_TURNS, "rope_parameters": _BY_KIND}),
    "phi3": ("phi3", {}),
    "phi3, longrope, long": ("phi3", _longrope(16)),
    "phi3, longrope, short": ("phi3", _longrope(300)),
    "phi4_mini": ("phi4_mini", {}),
    "glm4": ("glm4", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {}),
    "granite, llama3": ("granite", {"rope_parameters": _LLAMA3}),
    "granitemoe": ("granitemoe", {}),
    "starcoder2": ("starcoder2", _NO_WINDOW),
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v2, yarn": ("deepseek_v2", {"rope_parameters": _LATENT_YARN}),
    "deepseek_v2_lite": ("deepseek_v2_lite", {"num_hidden_layers": 27}),
    "deepseek_v3": ("deepseek_v3", {}),
    "deepseek_v3, yarn": ("deepseek_v3", {"rope_parameters": _LATENT_YARN}),
    "moonlight": ("moonlight", {"num_hidden_layers": 27}),
}
"""What llama.cpp is asked to compute: name -> (tiny configuration, what is changed in it)."""
_SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": _LLAMA3,
}


def scaled_configs() -> dict[str, Any]:
    """Each architecture with each kind of rope scaling that it is said to have, beyond those above."""
    found = {}
    for name, (_, changes) in FORMS_OF_MODELS.items():
        if "," in name or name == "gemma3":
            continue
        for kind in ("linear", "yarn", "llama3"):
            config = make_config(name)
            latent = (
                {"mscale": 0.7, "mscale_all_dim": 0.7} if kind == "yarn" and hasattr(config, "kv_lora_rank") else {}
            )
            if kind in ARCHITECTURES[config.model_type].scalings and "rope_parameters" not in changes:
                config.rope_parameters = {**config.rope_parameters, **_SCALED[kind], **latent}
                found[f"{name}, {kind}"] = config
    return found


PROMPT = [(i * 37) % 256 for i in range(24)]
STEPS = 6
ENDS = [256, 258]
ROUNDED = {"gemma2": 5e-3, "gemma3": 5e-3, "gemma3, linear": 5e-3, "starcoder2": 5e-3}
"""llama.cpp looks up GELU in a table of 16-bit numbers; all else is float32 on both sides."""


def make_config(name: str) -> Any:
    family, changes = FORMS_OF_MODELS.get(name, (name, {}))
    config = TINY_CONFIGS[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def make_model(config: Any) -> Any:
    """Random weights at which every part counts: attention is peaked, norms are not one, biases not zero."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name or "embed_scale" in name:
                continue
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                # Half of a deep model's gain, or its hidden states grow with every layer.
                weight.copy_(torch.randn_like(weight) * 1.6 / weight.shape[-1] ** 0.5)
    return model


def word_tokenizer() -> Any:
    """Byte-level, with tokens that are whole words: a server drops the steps of tokens that are no text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({f"w{i}": i for i in range(256)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def save(model: Any, folder: Path, tokenizer: Callable[[], Any] = word_tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def source_of(model, tokenizer=None, **more) -> Source:
    weights = {
        name: Weight(tuple(weight.shape), weight.dtype, lambda weight=weight: weight.detach())
        for name, weight in model.state_dict().items()
    }
    return Source("tiny", model.config, tokenizer or word_tokenizer(), model.generation_config, {**weights, **more})


def numbers(file: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}


def compare(llama_cpp, model, file: Path, tolerance: float, **more) -> np.ndarray:
    """Both write the same tokens, and see the same log-probability for every token of the vocabulary."""
    said = llama_cpp.ask("answer", file, ids=PROMPT, count=STEPS, **more)
    seen = torch.tensor([PROMPT + said["tokens"][:-1]])
    with torch.no_grad():
        wanted = model(seen).logits[0].log_softmax(-1)[len(PROMPT) - 1 :].numpy()
    found = np.array(said["logprobs"])
    assert found.shape == wanted.shape == (STEPS, model.config.vocab_size)
    assert np.abs(found - wanted).max() < tolerance
    # Ends of an answer are not written, so that there are as many steps as were asked for.
    assert np.delete(wanted, ENDS, axis=1).argmax(-1).tolist() == [
        id_ - sum(end < id_ for end in ENDS) for id_ in said["tokens"]
    ]
    return wanted
