"""What several tests use: tiny configurations, a byte tokenizer, batches, and a runner for the command line."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 320
_COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
           "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
           "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}  # fmt: skip


def _config(name: str, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**{k: v for k, v in {**_COMMON, **more}.items() if v is not ...})

    return make


_EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_LATENT = {"q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
           "num_key_value_heads": 4, "head_dim": ...}  # fmt: skip
_DEEPSEEK = {**_LATENT, **_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_MULTIPLIED = {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3,
               "logits_scaling": 4.0}  # fmt: skip
_TURNS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

TINY_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _config("LlamaConfig"),
    "llama_tied": _config("LlamaConfig", tie_word_embeddings=True, attention_bias=True),
    "llama4": _config("Llama4TextConfig", num_local_experts=4, attention_chunk_size=6, intermediate_size_mlp=48,
                      no_rope_layers=[1, 0], moe_layers=[1], floor_scale=4),
    "smollm3": _config("SmolLM3Config", no_rope_layers=[1, 0]),
    "qwen2": _config("Qwen2Config"),
    "qwen2_moe": _config("Qwen2MoeConfig", num_experts=4, shared_expert_intermediate_size=24, **_EXPERTS),
    "qwen3": _config("Qwen3Config"),
    "qwen3_moe": _config("Qwen3MoeConfig", num_experts=4, mlp_only_layers=[0], **_EXPERTS),
    "mistral": _config("MistralConfig", sliding_window=6),
    "ministral": _config("MinistralConfig", **_TURNS),
    "ministral3": _config("Ministral3Config", rope_parameters={
        "rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 4}),
    "mixtral": _config("MixtralConfig", num_local_experts=4, sliding_window=6),
    "gemma": _config("GemmaConfig"),
    "gemma2": _config("Gemma2Config", sliding_window=6, query_pre_attn_scalar=8),
    "gemma3": _config("Gemma3TextConfig", query_pre_attn_scalar=8, **_TURNS),
    "phi": _config("PhiConfig", qk_layernorm=True),
    "phi3": _config("Phi3Config"),
    "phi4_mini": _config("Phi3Config", tie_word_embeddings=True, rope_parameters={
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}),
    "phimoe": _config("PhimoeConfig", num_local_experts=4),
    "glm": _config("GlmConfig"),
    "glm4": _config("Glm4Config"),
    "glm4_moe": _config("Glm4MoeConfig", n_routed_experts=4, first_k_dense_replace=1, use_qk_norm=True, **_EXPERTS),
    "deepseek_v2": _config("DeepseekV2Config", **_DEEPSEEK),
    "deepseek_v2_lite": _config("DeepseekV2Config", **{**_DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3": _config("DeepseekV3Config", n_group=2, topk_group=1, **_DEEPSEEK),
    "moonlight": _config("DeepseekV3Config", n_group=1, topk_group=1, **{**_DEEPSEEK, "q_lora_rank": None}),
    "internlm3": _config("InternLM3Config", qkv_bias=True, bias=True),
    "minicpm3": _config("MiniCPM3Config", dim_model_base=8, **_LATENT),
    "falcon": _config("FalconConfig", new_decoder_architecture=True, num_kv_heads=2, head_dim=...,
                      num_key_value_heads=...),
    "falcon_7b": _config("FalconConfig", head_dim=..., num_key_value_heads=...),
    "falcon_alibi": _config("FalconConfig", alibi=True, multi_query=False, parallel_attn=False, bias=True,
                            head_dim=..., num_key_value_heads=...),
    "gpt2": _config("GPT2Config", num_key_value_heads=..., head_dim=...),
    "gpt_neox": _config("GPTNeoXConfig", num_key_value_heads=..., head_dim=...),
    "granite": _config("GraniteConfig", **_MULTIPLIED),
    "granitemoe": _config("GraniteMoeConfig", num_local_experts=4, num_experts_per_tok=2, **_MULTIPLIED),
    "olmo2": _config("Olmo2Config"),
    "olmo3": _config("Olmo3Config", **_TURNS),
    "starcoder2": _config("Starcoder2Config", sliding_window=6),
    "cohere": _config("CohereConfig", use_qk_norm=True, logit_scale=0.25),
    "cohere2": _config("Cohere2Config", **_TURNS),
    "gpt_oss": _config("GptOssConfig", num_local_experts=4, num_experts_per_tok=2, **_TURNS, rope_parameters={
        "rope_type": "default", "rope_theta": 1e4}),
}  # fmt: skip
"""Every architecture that has facts, in the forms that its published models take."""
FAMILIES_OF_EVERY_KIND = ["llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "phi3"]


def byte_tokenizer() -> Any:
    """Every byte is a token, plus three control tokens: small, fast, and lossless for any text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def make_folder(name: str, folder: Path) -> Path:
    """A folder with a tiny random model of family `name`, tokenizer included."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(TINY_CONFIGS[name]())
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def segment(num_context: int, num_learned: int, seed: int = 0, prefix: Sequence[int] = ()) -> Any:
    """Random tokens behind `prefix`; the last `num_learned` are learned."""
    import random

    from luthier.core.types import Segment

    draw = random.Random(seed)
    tokens = [*prefix, *(draw.randrange(VOCABULARY) for _ in range(num_context + num_learned))]
    return Segment(
        tokens=tokens, weight=[0.0] * (len(tokens) - num_learned) + [1.0] * num_learned, origin=f"row {seed}"
    )


@dataclass
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def last_json(self) -> dict[str, Any]:
        return json.loads(self.out.strip().splitlines()[-1])


def _child(argv: list[str], env: dict[str, str], out: str, err: str, cwd: str) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["luthier", *argv]
    from luthier.cli import main

    main()


class Jobs:
    """Starts `luthier ...` in a child that costs milliseconds, because its server has imported the heavy libraries."""

    def __init__(self) -> None:
        # Python 3.11's fork server does not hand sys.path on, and leaves out what it cannot import without a word.
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["preload"])
        self.count = 0

    def start(self, *argv: object, cwd: Path, **env: str) -> Any:
        self.count += 1
        out, err = cwd / f"job{self.count}.out", cwd / f"job{self.count}.err"
        full = {**{k: v for k, v in os.environ.items() if k.startswith(("LUTHIER", "HF_"))}, **env}
        process = self.context.Process(
            target=_child, args=([str(a) for a in argv], full, str(out), str(err), str(cwd)), daemon=True
        )
        process.start()
        process.files = (out, err)
        return process

    def finish(self, process: Any, timeout_seconds: float = 120) -> Result:
        process.join(timeout_seconds)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"still running after {timeout_seconds} s: {process.files[1].read_text()}")
        out, err = (path.read_text() for path in process.files)
        return Result(process.exitcode, out, err)

    def run(self, *argv: object, cwd: Path, **env: str) -> Result:
        return self.finish(self.start(*argv, cwd=cwd, **env))


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll until `condition` returns something true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def losses(run: Path) -> dict[int, str]:
    """The loss of every step, as hex floats: equality means bit-identical."""
    from luthier.runs.store import read_events

    return {event["step"]: float(event["loss"]).hex() for event in read_events(run, "train")}


def kill(process: Any) -> None:
    process.kill()
    process.join()


def stop_after(monkeypatch: Any, step: int) -> None:
    """Make the trainer believe that a signal came in during `step`."""
    from luthier.training.trainer import Trainer

    original = Trainer._step

    def stepping(self: Any, windows: Any) -> None:
        original(self, windows)
        if self.state.step == step:
            self.stop.received = 15

    monkeypatch.setattr(Trainer, "_step", stepping)
