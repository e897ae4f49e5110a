"""LoRA adapters as GGUF: llama.cpp with base and adapter computes what peft computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf_models import ROUNDED, compare, make_config, make_model, save

from luthier.core.errors import ModelError
from luthier.export.gguf import write_adapter_gguf, write_gguf
from luthier.export.source import folder_source

ROUND = {family: ROUNDED.get(family, 2e-4) for family in ("llama, tied, with biases", "mixtral", "smollm3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3", "phi3", "glm4", "olmo2", "granite", "granitemoe", "starcoder2", "internlm3")}  # fmt: skip


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SHARED = [f"shared_expert.{part}_proj" for part in ("gate", "up", "down")]


def adapted(name: str, folder: Path, **settings) -> tuple[object, Path, Path]:
    """A model under a random LoRA, its base's folder and the adapter's."""
    from peft import LoraConfig, get_peft_model

    model = make_model(make_config(name))
    base = save(model, folder / "base")
    linear = settings.pop("target_modules", None) or (
        "all-linear"
        if not model.config.model_type.endswith("moe") and name != "mixtral"
        else [*ATTENTION, *SHARED * (name == "qwen2_moe")]
    )
    tuned = get_peft_model(
        model,
        LoraConfig(
            r=4, lora_alpha=6, target_modules=linear, init_lora_weights=False, task_type="CAUSAL_LM", **settings
        ),
    )
    for part, weight in tuned.named_parameters():
        if "lora_" in part:
            torch.nn.init.normal_(weight, std=0.2)
    tuned.save_pretrained(folder / "adapter")
    return tuned.eval(), base, folder / "adapter"


def both(llama_cpp, tmp_path: Path, name: str, tolerance: float, **settings) -> None:
    tuned, base, adapter = adapted(name, tmp_path, **settings)
    source = folder_source(base)
    file = write_gguf(source, tmp_path / "base.gguf", form="f32")
    put_on = write_adapter_gguf(adapter, source, tmp_path / "adapter.gguf")
    compare(llama_cpp, tuned, file, tolerance, adapter=str(put_on))
    with pytest.raises(AssertionError):
        compare(llama_cpp, tuned, file, tolerance)


@pytest.mark.parametrize(("name", "tolerance"), ROUND.items())
def test_base_and_adapter(name, tolerance, llama_cpp, tmp_path) -> None:
    both(llama_cpp, tmp_path, name, tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3, "layers.1.mlp.up_proj": 11}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 8, "down_proj": 1}, "alpha_pattern": {"v_proj": 1}},
        {"layers_to_transform": [1], "target_modules": [*ATTENTION, "down_proj"]},
    ],
)
def test_scales_of_modules(settings, llama_cpp, tmp_path) -> None:
    both(llama_cpp, tmp_path, "llama", 2e-4, **settings)


def test_dora_is_refused(tmp_path) -> None:
    _, base, adapter = adapted("llama", tmp_path, use_dora=True)
    with pytest.raises(ModelError, match=r"no GGUF form: it scales the rows of the weights \(DoRA\)\. Merge it first"):
        write_adapter_gguf(adapter, folder_source(base), tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("adapter.gguf*"))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("peft_type", "IA3", "it is of kind IA3; GGUF adapters are LoRA"),
        ("bias", "all", "it trains biases"),
        ("lora_bias", True, "its B has biases"),
        ("modules_to_save", ["lm_head"], "it holds whole modules"),
        ("trainable_token_indices", [1], "it holds rows of the embeddings"),
        ("target_parameters", ["mlp.experts.down_proj"], "it changes experts"),
        ("layer_replication", [[0, 2]], "it repeats layers"),
        ("use_qalora", True, "it pools its inputs"),
    ],
)
def test_what_is_no_plain_lora_is_refused(key, value, sentence, tmp_path) -> None:
    _, base, adapter = adapted("llama", tmp_path)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelError, match=sentence):
        write_adapter_gguf(adapter, folder_source(base), tmp_path / "adapter.gguf")


def test_another_base_is_refused(tmp_path) -> None:
    _, _, adapter = adapted("llama", tmp_path)
    wide = save(make_model(make_config("llama, wide heads")), tmp_path / "wide")
    with pytest.raises(ModelError, match=r"the adapter makes .*_proj of shape .*; in the base wide it has"):
        write_adapter_gguf(adapter, folder_source(wide), tmp_path / "adapter.gguf")
    other = save(make_model(make_config("phi3")), tmp_path / "other")
    with pytest.raises(ModelError, match=r"the adapter changes .*, which the base other has not"):
        write_adapter_gguf(adapter, folder_source(other), tmp_path / "adapter.gguf")


def test_embeddings_and_latent_attention_are_refused(tmp_path) -> None:
    _, base, adapter = adapted("llama", tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match="it changes the embeddings"):
        write_adapter_gguf(adapter, folder_source(base), tmp_path / "adapter.gguf")
    latent = save(make_model(make_config("deepseek_v2")), tmp_path / "latent")
    with pytest.raises(ModelError, match="llama.cpp leaves adapters out of the attention of deepseek_v2"):
        write_adapter_gguf(adapter, folder_source(latent), tmp_path / "adapter.gguf")
