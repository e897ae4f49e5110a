"""What stands in a GGUF file, how exact it is, and that a file is whole or not there."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_models import FORMS_OF_MODELS, make_config, make_model, numbers, save, source_of, word_tokenizer

from luthier.core.errors import ConfigError, ModelError, RunError
from luthier.export.gguf import FORMS, form_of, obstacle, planned, write_gguf
from luthier.export.source import Source, Weight, folder_source


def said_in(file: Path) -> dict:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items() if not key.startswith("GGUF.")}


@pytest.fixture(scope="module")
def wide() -> Source:
    """Rows of 64: blocks of 32 divide them."""
    config = make_config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 96, 16
    return source_of(make_model(config))


@pytest.mark.parametrize("name", FORMS_OF_MODELS)
def test_a_plan_is_the_file(name, tmp_path) -> None:
    """Names in transformers' memory (fused experts) and those of a folder give the same plan and the same file."""
    model = make_model(make_config(name))
    here = planned(source_of(model))
    there = planned(folder_source(save(model, tmp_path)))
    assert [(t.name, t.shape) for t in here] == [(t.name, t.shape) for t in there]
    file = write_gguf(source_of(model), tmp_path / "model.gguf", form="f32")
    found = numbers(file)
    assert list(found) == [t.name for t in here]
    for one, other in zip(here, there, strict=True):
        made = one.read()
        assert made.dtype == torch.float32
        assert tuple(made.shape) == one.shape
        assert torch.equal(made, other.read())
        assert np.array_equal(made.numpy(), found[one.name].reshape(one.shape))


@pytest.mark.parametrize(("form", "step"), [("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 254), ("q5_0", 1 / 16), ("q4_0", 1 / 8)])  # fmt: skip
def test_forms_round_once(form, step, wide, tmp_path) -> None:
    """f16 and bf16: half a unit in the last place; blocks: half a step of the largest number in the block."""
    file = write_gguf(wide, tmp_path / "model.gguf", form=form)
    kinds = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(file).tensors}
    exact = {t.name: t.read().numpy() for t in planned(wide)}
    found = numbers(file)
    assert {kind for name, kind in kinds.items() if exact[name].ndim > 1} == {form}
    assert {kind for name, kind in kinds.items() if exact[name].ndim == 1} == {"f32"}
    for name, x in exact.items():
        if x.ndim == 1:
            assert np.array_equal(x, found[name])
            continue
        off = np.abs(found[name] - x).reshape(-1, 32)
        largest = np.abs(x).reshape(-1, 32) if form.endswith("16") else np.abs(x).reshape(-1, 32).max(-1, keepdims=True)
        # Scales of blocks are f16, which moves the largest number by as much.
        assert (off <= largest * (step + 2**-11 * (not form.endswith("16"))) + 1e-7).all()
        assert off.max() > 0
    assert said_in(file)["general.file_type"] == FORMS[form].file_type


def test_vectors_and_routers_stay_whole(tmp_path) -> None:
    for name in ("llama, tied, with biases", "qwen2_moe"):
        file = write_gguf(source_of(make_model(make_config(name))), tmp_path / "m.gguf", form="f16")
        kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
        whole = {
            key for key in kinds if key.endswith(("bias", "_norm.weight", "ffn_gate_inp.weight", "inp_shexp.weight"))
        }
        assert {key for key, kind in kinds.items() if kind == "F32"} == whole


def test_rows_that_no_block_divides_are_f16(tmp_path) -> None:
    model = make_model(make_config("llama"))
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(write_gguf(source_of(model), tmp_path / "m.gguf", form="q8_0")).tensors}  # fmt: skip
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_settings_are_said(tmp_path) -> None:
    model = make_model(make_config("llama, yarn"))
    model.generation_config.eos_token_id = [258, 256]
    said = said_in(write_gguf(source_of(model), tmp_path / "m.gguf", form="f32"))
    wanted = {
        "general.architecture": "llama", "general.type": "model", "general.name": "tiny", "general.file_type": 0,
        "general.quantization_version": 2, "llama.vocab_size": 320, "llama.context_length": 512,
        "llama.embedding_length": 32, "llama.block_count": 2, "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 8,
        "llama.attention.value_length": 8, "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.dimension_count": 8, "llama.rope.freq_base": 1e4, "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 16,
        "llama.rope.scaling.yarn_beta_fast": 32.0, "llama.rope.scaling.yarn_beta_slow": 1.0,
        "llama.rope.scaling.attn_factor": pytest.approx(1.7 / (0.1 * np.log(4) + 1)),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eot_token_id": 258, "tokenizer.ggml.eom_token_id": 256, "tokenizer.ggml.padding_token_id": 256,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": word_tokenizer().chat_template,
    }  # fmt: skip
    lists = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"}
    assert {key: value for key, value in said.items() if key not in lists} == wanted
    assert len(said["tokenizer.ggml.tokens"]) == len(set(said["tokenizer.ggml.tokens"])) == 320
    assert said["tokenizer.ggml.token_type"][255:260] == [1, 3, 3, 3, 5]


def test_a_window_that_llama_cpp_lacks_ends_the_context(tmp_path) -> None:
    config = make_config("starcoder2")
    config.sliding_window = 6
    said = said_in(write_gguf(source_of(make_model(config)), tmp_path / "m.gguf", form="f32"))
    assert said["starcoder2.context_length"] == 6
    said = said_in(write_gguf(source_of(make_model(make_config("gemma2"))), tmp_path / "g.gguf", form="f32"))
    assert (said["gemma2.context_length"], said["gemma2.attention.sliding_window"]) == (512, 6)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3", "starcoder2"])
def test_transformers_reads_it_back(name, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    config = make_config(name)
    if name == "qwen3":
        config.head_dim = 128  # its reader takes the default, whatever the file says
    model = make_model(config)
    write_gguf(folder_source(save(model, tmp_path)), tmp_path / "model.gguf", form="f32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(20)[None] * 7 % 256
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-4)


# ---- refusals


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("falcon", {}, "falcon has no mapping to GGUF .*export_format: merged works"),
        ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": []}, "norm_topk_prob is false"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "some of its layers have no experts"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob is true"),
        ("gemma2", {"query_pre_attn_scalar": 5}, "query_pre_attn_scalar is 5; llama.cpp computes with 16"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "layers do not take turns"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers is not every fourth layer"),
        ("deepseek_v2_lite", {"num_hidden_layers": 2}, "no q_lora_rank and 2 layers"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "chosen by group_limited_greedy"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is false"),
        ("deepseek_v3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "mscale None"),
        ("llama", {"hidden_act": "relu"}, "its MLP has relu, llama.cpp computes silu"),
        ("gemma3", {"hidden_activation": "gelu"}, "its MLP has gelu, llama.cpp computes gelu_pytorch_tanh"),
        ("qwen2", {"head_dim": 16}, "heads do not add up"),
        ("qwen3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope scaling 'llama3'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "truncate": False}}, "truncation"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "beta_fast": 16}},
            "beta_fast 16 and beta",
        ),
    ],
)
def test_what_is_not_exact_is_refused(name, changes, sentence, tmp_path) -> None:
    import re

    config = make_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    assert re.search(sentence, obstacle(config) or "")
    with pytest.raises(ModelError, match=sentence):
        write_gguf(Source("x", config, None, None, {}), tmp_path / "m.gguf", form="f32")
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    whole = source_of(make_model(make_config("llama")))

    def written(weights: dict) -> None:
        write_gguf(Source("x", whole.facts, whole.tokenizer, None, weights), tmp_path / "m.gguf", form="f32")

    name = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(ModelError, match="the weights have nothing for blk.1.attn_k.weight; the model is damaged"):
        written({key: value for key, value in whole.weights.items() if key != name})
    with pytest.raises(
        ModelError, match=r"blk.1.attn_k.weight would have shape \(8, 32\), the configuration says \(16, 32\)"
    ):
        written({**whole.weights, name: Weight((8, 32), torch.float32, lambda: torch.zeros(8, 32))})
    with pytest.raises(ModelError, match="model.extra.weight of llama has no place in a GGUF file"):
        written({**whole.weights, "model.extra.weight": whole.weights[name]})
    assert not list(tmp_path.iterdir())


def test_unknown_forms_are_refused(wide, tmp_path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown form of a GGUF file 'q4_km'; did you mean 'q4_k_m'\? It may be one of: f32, .*iq1_s",
    ):
        form_of("q4_km")
    assert form_of("Q4_K_M").name == "q4_k_m"
    with pytest.raises(ConfigError, match="q4_k_m is made of an f16 or bf16 file by quantize_file"):
        write_gguf(wide, tmp_path / "m.gguf", form="q4_k_m")
    with pytest.raises(ConfigError, match="unknown form"):
        write_gguf(wide, tmp_path / "m.gguf", form="q9")
    assert not list(tmp_path.iterdir())


def test_numbers_of_forms_are_llama_cpps() -> None:
    for form in FORMS.values():
        names = {f"MOSTLY_{form.name.upper()}", f"ALL_{form.name.upper()}"}
        assert {kind.name for kind in gguf.LlamaFileType if kind.value == form.file_type} & names


# ---- whole or not at all


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_and_the_old_file(error, wide, tmp_path) -> None:
    def broken() -> torch.Tensor:
        raise error

    name = "model.layers.1.self_attn.v_proj.weight"
    weights = {**wide.weights, name: Weight(wide.weights[name].shape, torch.float32, broken)}
    file = tmp_path / "m.gguf"
    file.write_bytes(b"old")
    with pytest.raises((RunError, KeyboardInterrupt), match="m.gguf cannot be written: No space left on device; nothing was left|") as found:  # fmt: skip
        write_gguf(Source("x", wide.facts, wide.tokenizer, None, weights), file, form="f16")
    assert isinstance(found.value, RunError) == isinstance(error, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert file.read_bytes() == b"old"


def test_a_full_disk(wide, tmp_path) -> None:
    """A limit on the size of files fails a write in the middle of a tensor."""
    import signal

    old, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(RunError, match="cannot be written: .*; nothing was left behind"):
            write_gguf(wide, tmp_path / "m.gguf", form="f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_memory_is_one_tensor(tmp_path) -> None:
    """600 MB of weights, of which none is larger than 33 MB, are written with 200 MB more than at the start."""
    script = f"""
import resource, sys, torch
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
from pathlib import Path
from gguf_models import make_config, word_tokenizer
from luthier.export.gguf import planned, write_gguf
from luthier.export.source import Source, Weight
from transformers import AutoModelForCausalLM
config = make_config("llama")
config.hidden_size, config.intermediate_size, config.num_hidden_layers = 2048, 4096, 5
config.head_dim = 512
with torch.device("meta"):
    shell = AutoModelForCausalLM.from_config(config)
weights = {{n: Weight(tuple(p.shape), torch.float32, lambda s=p.shape: torch.full(s, 0.5)) for n, p in shell.named_parameters()}}
source = Source("big", config, word_tokenizer(), None, weights)
size = sum(t.shape[0] * (t.shape[1] if len(t.shape) > 1 else 1) * 4 for t in planned(source))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_gguf(source, Path(sys.argv[1]), form="q8_0")
print(size >> 20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.gguf")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, more = map(int, done.stdout.split()[-2:])
    assert size > 600
    assert more < 200
