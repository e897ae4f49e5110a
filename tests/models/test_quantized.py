"""Quantized bases: the layers, loading tensor by tensor, foreign formats, and merging."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import VOCABULARY, make_folder
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.config.load import load_config
from luthier.config.schema import ModelConfig
from luthier.core.errors import ConfigError, ModelError
from luthier.models import quantized_files, quantized_load
from luthier.models.adapters import save_trained
from luthier.models.device import Placement, place
from luthier.models.load import load_for_inference, load_model, parameter_counts, put_kernels, resolve
from luthier.models.quantized import (
    QuantizedLinear,
    make_dense,
    make_mergeable,
    quantize,
    quantized_layers,
    quantized_size,
)
from luthier.tuning.lora import Lora
from luthier.workflows.export import export_model

KINDS = ["nf4", "fp4", "int8"]
IDS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(0))


def settings(folder: Path, **more) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder), **{"dtype": "float32", "device": "cpu", **more})


def load(folder: Path, **more):
    config = settings(folder, **more)
    return load_model(resolve(config.model_name_or_path), config, place(config)).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits.float()


def layer(kind: str, outputs: int = 40, inputs: int = 96, *, double: bool = False) -> QuantizedLinear:
    return QuantizedLinear.of(nn.Linear(inputs, outputs), kind, double=double, dtype=torch.float32)


# ---- a layer


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_a_frozen_linear_layer(kind: str, double: bool) -> None:
    narrow = layer(kind, double=double)
    assert isinstance(narrow, nn.Linear)
    assert [name for name, _ in narrow.named_parameters()] == ["bias"]
    x = torch.randn(3, 5, 96, requires_grad=True)
    expected = nn.functional.linear(x, narrow.weight, narrow.bias)
    # 8-bit products round their input, too.
    torch.testing.assert_close(narrow(x), expected, rtol=0, atol=2e-2 if kind == "int8" else 1e-4)
    d_y = torch.randn_like(expected)
    have, want = (torch.autograd.grad(y, x, d_y)[0] for y in (narrow(x), expected))
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_saved_and_read(kind: str) -> None:
    one, other = layer(kind, double=True), layer(kind, double=True)
    x = torch.randn(7, 96)
    y = one(x)
    saved = {name: part.clone() for name, part in one.state_dict().items()}
    assert not torch.equal(other(x), y)
    other.load_state_dict(saved)
    torch.testing.assert_close(other(x), y, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"bias": saved["bias"]})


@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_leaves_codes_and_scales(kind: str) -> None:
    narrow = layer(kind)
    exact = narrow.weight.clone()
    narrow.to(torch.bfloat16)
    assert (narrow.weight.dtype, narrow.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(narrow.to(torch.float32).weight, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_meta_device_a_layer_has_the_same_bytes(kind: str) -> None:
    real = layer(kind, double=True)
    shell = QuantizedLinear.of(nn.Linear(96, 40, device="meta"), kind, double=True, dtype=torch.float32)
    assert shell.narrow.num_bytes == real.narrow.num_bytes
    assert {p.device.type for p in shell.narrow.parts().values()} == {"meta"}
    assert real.to("meta").device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_plain_torch_computes_the_same(kind: str) -> None:
    narrow, x = layer(kind), torch.randn(9, 96)
    fast = narrow(x)
    narrow.backend = "torch"
    torch.testing.assert_close(narrow(x), fast, rtol=1e-4, atol=1e-4)


# ---- a model


@pytest.mark.parametrize("kind", KINDS)
def test_loading_quantizes_what_the_file_says(family_folder: Path, kind: str) -> None:
    """Whatever is renamed, split or joined on the way, and whatever the model computes in."""
    dense = load(family_folder)
    quantize(dense, kind, double=True, dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        config = settings(family_folder, quantization=kind)
        where = Placement(torch.device("cpu"), dtype, None, "")
        found = load_model(resolve(str(family_folder)), config, where)
        assert len(list(quantized_layers(found))) == len(list(quantized_layers(dense))) > 0
        expected = dense.state_dict()
        assert expected.keys() == found.state_dict().keys()
        for name, part in found.state_dict().items():
            want = expected[name]
            assert torch.equal(part, want.to(part.dtype)), name
        assert next(quantized_layers(found))[1].dtype == dtype
        assert parameter_counts(found) == parameter_counts(dense)


def test_head_embeddings_and_norms_stay(tiny: Path) -> None:
    model = load(tiny, quantization="nf4")
    left = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert left == {"lm_head"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_memory_holds_one_dense_weight_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder("llama", tmp_path / "model")
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in files.items():
        save_file({name: whole[name] for name in inside}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in files.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    live: dict[int, int] = {}
    most: list[int] = [0]
    plain = quantized_files._safetensors

    def watched(file: Path):
        def watch(name: str, stored):
            def read() -> torch.Tensor:
                tensor = stored[...]
                if ".layers." in name and tensor.dim() == 2:
                    live[id(tensor)] = tensor.nbytes
                    weakref.finalize(tensor, live.pop, id(tensor), None)
                    most[0] = max(most[0], sum(live.values()))
                return tensor

            return quantized_files.Stored(read)

        return {name: watch(name, stored) for name, stored in plain(file).items()}

    monkeypatch.setattr(quantized_files, "_safetensors", watched)
    model = load(folder, quantization="nf4")
    assert most[0] == max(whole[name].nbytes for name in names if ".layers." in name)
    dense = load(folder)
    quantize(dense, "nf4", double=True, dtype=torch.float32)
    assert torch.equal(logits(model), logits(dense))


def test_convolutions_of_gpt2_become_linear_layers(tmp_path: Path) -> None:
    import transformers
    from helpers import byte_tokenizer
    from transformers.pytorch_utils import Conv1D

    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    exact, model = load(tmp_path), load(tmp_path, quantization="int8")
    assert len(list(quantized_layers(model))) == 8
    torch.testing.assert_close(logits(model), logits(exact), rtol=0, atol=0.05)
    again = make_dense(model, torch.float32)
    assert isinstance(again.transformer.h[0].attn.c_attn, Conv1D)
    torch.testing.assert_close(logits(again), logits(exact), rtol=0, atol=0.05)


def test_quantized_layers_are_small(tiny: Path) -> None:
    numbers, size = quantized_size(load(tiny, quantization="nf4"))
    assert numbers == 15360
    # A scale of 8 bits for 64 numbers, and two float32 for each of 14 layers.
    assert size == numbers // 2 + numbers // 64 + 14 * 8


# ---- refusals


def test_what_cannot_run_is_refused_before_loading(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_load, "bitsandbytes_obstacle", lambda device: "it is not here")
    monkeypatch.setattr(quantized_files, "open_weights", lambda *a, **k: pytest.fail("weights were opened"))
    with pytest.raises(ConfigError, match="it is not here; set quantization_backend: luthier") as caught:
        load(tiny, quantization="nf4", quantization_backend="bitsandbytes")
    assert caught.value.exit_code == 2


def test_auto_says_whose_layers_compute_and_why(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tiny, quantization="nf4")
    on_cpu, on_gpu = (Placement(torch.device(name), torch.float32, None, "") for name in ("cpu", "cuda"))
    assert quantized_load.choose(config, on_cpu).backend == "luthier"
    monkeypatch.setattr(quantized_load, "bitsandbytes_obstacle", lambda device: None)
    assert quantized_load.choose(config, on_gpu).backend == "bitsandbytes"
    monkeypatch.setattr(quantized_load, "bitsandbytes_obstacle", lambda device: "it is not here")
    chosen = quantized_load.choose(config, on_gpu)
    assert (chosen.backend, chosen.reason) == ("luthier", "it is not here")
    assert quantized_load.choose(settings(tiny), on_cpu) is None


def test_bitsandbytes_layers_load_and_narrow_inputs_are_refused(tiny: Path) -> None:
    pytest.importorskip("bitsandbytes")
    exact = logits(load(tiny))
    model = load(tiny, quantization="int8", quantization_backend="bitsandbytes")
    torch.testing.assert_close(logits(model), exact, rtol=0, atol=0.05)
    assert parameter_counts(model) == parameter_counts(load(tiny))
    with pytest.raises(ModelError, match="has 32 inputs, no multiple of 64; set quantization_backend: luthier"):
        load(tiny, quantization="nf4", quantization_backend="bitsandbytes")


def test_a_model_in_another_quantized_form_is_not_quantized_again(tiny: Path, tmp_path: Path) -> None:
    folder = declare(tiny, tmp_path / "fp8", quant_method="fp8")
    with pytest.raises(ModelError, match="is quantized already \\(fp8\\); leave quantization out"):
        load(folder, quantization="nf4")


# ---- foreign formats


def declare(tiny: Path, folder: Path, **quantization) -> Path:
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


def pack(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Put whole numbers of each row side by side into 32 bits, the first one lowest."""
    count = 32 // bits
    shifted = codes.astype(np.uint64).reshape(*codes.shape[:-1], -1, count) << (
        np.arange(count, dtype=np.uint64) * bits
    )
    return torch.from_numpy(shifted.sum(-1).astype(np.uint32).view(np.int32))


def whole_numbers(tiny: Path, folder: Path, write, group: int, bits: int, **facts) -> dict[str, torch.Tensor]:
    """Replace each linear layer of the decoder by known whole numbers; return what they stand for, [O, I]."""
    declare(tiny, folder, bits=bits, group_size=group, **facts)
    draw = np.random.default_rng(0)
    weights, expected = load_file(folder / "model.safetensors"), {}
    for name in [name for name in weights if "proj.weight" in name]:
        outputs, inputs = weights.pop(name).shape
        size = group if group > 0 else inputs
        groups = inputs // size
        codes_IO = draw.integers(0, 2**bits, (inputs, outputs))
        zeros_GO = draw.integers(1, 2**bits, (groups, outputs))
        scale_GO = (draw.uniform(0.5, 2, (groups, outputs)) / 2**bits / 8).astype(np.float16)
        group_I = np.arange(inputs) // size
        if facts.get("desc_act"):
            draw.shuffle(group_I)
        dense_IO = (codes_IO - zeros_GO[group_I]) * scale_GO[group_I].astype(np.float32)
        expected[name] = torch.from_numpy(dense_IO.T.astype(np.float32).copy())
        parts = write(codes_IO, zeros_GO, bits) | {"scales": torch.from_numpy(scale_GO)}
        if "desc_act" in facts:
            parts["g_idx"] = torch.from_numpy(group_I.astype(np.int32))
        weights |= {name.replace("weight", part): tensor.contiguous() for part, tensor in parts.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return expected


def gptq(offset: int):
    def write(codes_IO: np.ndarray, zeros_GO: np.ndarray, bits: int) -> dict[str, torch.Tensor]:
        stored = (zeros_GO - offset) % 2**bits
        return {"qweight": pack(codes_IO.T, bits).t(), "qzeros": pack(stored, bits)}

    return write


def awq(codes_IO: np.ndarray, zeros_GO: np.ndarray, bits: int) -> dict[str, torch.Tensor]:
    def in_order(codes: np.ndarray) -> np.ndarray:
        return codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(codes.shape)

    return {"qweight": pack(in_order(codes_IO), bits), "qzeros": pack(in_order(zeros_GO), bits)}


FORMATS = [
    pytest.param(gptq(1), {"quant_method": "gptq", "bits": 4, "group": 16}, id="gptq-4"),
    pytest.param(gptq(1), {"quant_method": "gptq", "bits": 8, "group": 16}, id="gptq-8"),
    pytest.param(gptq(1), {"quant_method": "gptq", "bits": 4, "group": -1}, id="gptq-one-group"),
    pytest.param(gptq(1), {"quant_method": "gptq", "bits": 4, "group": 8, "desc_act": True}, id="gptq-ordered"),
    pytest.param(
        gptq(0), {"quant_method": "gptq", "bits": 4, "group": 16, "checkpoint_format": "gptq_v2"}, id="gptq-2"
    ),
    pytest.param(awq, {"quant_method": "awq", "bits": 4, "group": 16, "version": "gemm"}, id="awq"),
]


@pytest.mark.parametrize(("write", "facts"), FORMATS)
def test_whole_numbers_are_unpacked_exactly(tiny: Path, tmp_path: Path, write, facts: dict) -> None:
    expected = whole_numbers(tiny, tmp_path / "model", write, **facts)
    model = load(tmp_path / "model")
    found = dict(model.named_parameters())
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert not hasattr(model.config, "quantization_config")
    narrow = load(tmp_path / "model", quantization="nf4")
    for name, weight in expected.items():
        there: QuantizedLinear = narrow.get_submodule(name.removesuffix(".weight"))
        again = QuantizedLinear.of(there.dense(torch.float32), "nf4", double=True, dtype=torch.float32, weight=weight)
        assert torch.equal(there.weight, again.weight)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "the layout 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "the layout 'gemv'"),
    ],
)
def test_layouts_that_are_not_known_are_refused(tiny: Path, tmp_path: Path, facts: dict, message: str) -> None:
    folder = declare(tiny, tmp_path / "model", **facts)
    with pytest.raises(ModelError, match=f"has {message}, which luthier cannot read; take the unquantized model"):
        load(folder)


def test_a_group_without_scale_is_damage(tiny: Path, tmp_path: Path) -> None:
    whole_numbers(tiny, tmp_path / "model", gptq(1), 8, 4, quant_method="gptq", desc_act=True)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.g_idx"][3] = 99
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="name 100 groups of inputs, but there are scales for 4"):
        load(tmp_path / "model")


# ---- adapters on top


def tuned(folder: Path, kind: str, **more):
    torch.manual_seed(5)
    model = Lora(rank=4, **more).apply(load(folder, quantization=kind))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_kernel_computes_what_peft_does(tiny: Path, kind: str, dropout: float) -> None:
    def run(kernels: str) -> list[torch.Tensor]:
        model = tuned(tiny, kind, dropout=dropout)
        put_kernels(model, settings(tiny, kernels=kernels), quiet=True)
        model.train()
        torch.manual_seed(9)
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]

    for have, want in zip(run("auto"), run("off"), strict=True):
        torch.testing.assert_close(have, want, rtol=2e-3, atol=2e-5 if kind != "int8" else 2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_weight_is_not_kept_for_the_backward_pass(tiny: Path, kind: str) -> None:
    model = tuned(tiny, kind)
    put_kernels(model, settings(tiny), quiet=True)
    sizes = {(m.out_features, m.in_features) for _, m in quantized_layers(model)}
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train()(IDS).logits.sum().backward()
    assert kept
    assert not sizes & set(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_merge_keeps_what_was_trained(tiny: Path, kind: str) -> None:
    model = tuned(tiny, kind)
    expected = logits(model)
    assert make_mergeable(model) == 14
    merged = model.merge_and_unload()
    assert not list(quantized_layers(merged))
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4 if kind != "int8" else 0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_what_was_trained(tiny: Path, tmp_path: Path, kind: str) -> None:
    model = tuned(tiny, kind)
    expected, base = logits(model), logits(load(tiny))
    save_trained(model, tmp_path / "adapter", str(tiny))
    given = {"model_name_or_path": str(tiny), "adapter_name_or_path": str(tmp_path / "adapter"), "quantization": kind,
             "dtype": "float32", "export_dir": str(tmp_path / "merged")}  # fmt: skip
    folder = export_model(load_config(given).config)[0].folder
    found = logits(load(folder))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if kind != "int8" else 0.05)
    assert (found - base).abs().max() > 0.1
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_a_trained_run_answers_and_exports_in_its_form(tiny: Path, rows: Path, tmp_path: Path, jobs) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: {tiny}\ndataset: {rows}\nfinetuning_type: qlora\ndtype: float32\n"
                    "max_steps: 3\nlearning_rate: 0.01\noutput_dir: run\n")  # fmt: skip
    done = jobs.run("train", file, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "quantization: nf4 with 8-bit scales by luthier" in done.err
    run = load_config(tmp_path / "run", [f"model_name_or_path={tmp_path / 'run'}"]).config
    assert run.model.quantization == "nf4"
    model, _ = load_for_inference(run.model, place(run.model))
    assert len(list(quantized_layers(model))) == 14
    expected = logits(model)
    folder = export_model(replace(run, export=replace(run.export, export_dir=str(tmp_path / "merged"))))[0].folder
    torch.testing.assert_close(logits(load(folder)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_our_decoder_reads_narrow_layers(tiny: Path, kind: str) -> None:
    from luthier.models.decoder_parts import obstacle, weight_of

    model = tuned(tiny, kind)
    put_kernels(model, settings(tiny), quiet=True)
    logits(model)
    projection = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    expected = projection.base_layer.weight + projection.get_delta_weight("default")
    assert obstacle(model) is None
    torch.testing.assert_close(weight_of(projection), expected)
    assert len(list(quantized_layers(model))) == 14


def test_an_adapter_can_start_with_what_quantization_lost(tiny: Path) -> None:
    exact = logits(load(tiny))
    far, near = (
        (logits(Lora(rank=16, init=init).apply(load(tiny, quantization="nf4")).eval()) - exact).norm()
        for init in ("zero", "loftq")
    )
    assert near < 0.6 * far


def test_our_decoder_leaves_bitsandbytes_alone(tiny: Path) -> None:
    from luthier.models.decoder_parts import obstacle

    pytest.importorskip("bitsandbytes")
    assert obstacle(load(tiny, quantization="int8", quantization_backend="bitsandbytes")) == (
        "a layer is a Linear8bitLt"
    )


def test_an_estimate_knows_narrow_weights(tiny: Path, rows: Path) -> None:
    from luthier.workflows.estimate import estimate

    given = {"model_name_or_path": str(tiny), "dataset": str(rows), "dtype": "float32", "max_steps": 1}
    plain, narrow = (estimate(load_config({**given, "quantization": kind}).config) for kind in ("none", "nf4"))
    assert narrow.parameters == plain.parameters
    model = load(tiny, quantization="nf4")
    numbers, size = quantized_size(model)
    assert plain.memory["weights"] - narrow.memory["weights"] == 4 * numbers - size


# ---- GGUF


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0"])
def test_a_gguf_file_is_a_model(tmp_path: Path, form: str) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "tiny.gguf"
    expected = write_gguf(gguf, file, form)
    files = resolve(str(file))
    assert files.public_base == str(file)
    model = load(file)
    found = dict(model.named_parameters())
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert resolve(str(tmp_path)) == files
    assert len(list(quantized_layers(load(file, quantization="nf4")))) == 14


def test_gguf_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="a.gguf is no GGUF file"):
        resolve(str(tmp_path / "a.gguf"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match="a.gguf cannot be read"):
        resolve(str(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="2 GGUF files; name one of them: a.gguf, b.gguf"):
        resolve(str(tmp_path))


def write_gguf(gguf, file: Path, form: str) -> dict[str, torch.Tensor]:
    """Write a Llama of 14 linear layers in blocks of 32; return what they stand for under transformers' names."""
    draw, hidden, inner, expected = np.random.default_rng(1), 64, 96, {}
    kind = gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(hidden)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [f"<0x{i:02X}>" for i in range(256)]
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *tokens])
    writer.add_token_scores([0.0] * 259)
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    ours = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj"}  # fmt: skip
    for i in range(2):
        for theirs, name in ours.items():
            shape = {"ffn_down": (hidden, inner), "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden)}
            weight = draw.normal(size=shape.get(theirs, (hidden, hidden))).astype(np.float32)
            packed = gguf.quantize(weight, kind)
            writer.add_tensor(f"blk.{i}.{theirs}.weight", packed, raw_dtype=kind)
            dense = torch.from_numpy(gguf.dequantize(packed, kind))
            if theirs in ("attn_q", "attn_k"):  # the format turns neighbours, transformers halves
                dense = dense.view(1, hidden // 2, 2, hidden).transpose(1, 2).reshape(hidden, hidden)
            expected[f"model.layers.{i}.{name}.weight"] = dense
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(hidden, np.float32))
    writer.add_tensor("token_embd.weight", draw.normal(size=(259, hidden)).astype(np.float32))
    writer.add_tensor("output.weight", draw.normal(size=(259, hidden)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
