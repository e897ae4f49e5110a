"""Quantized bases: the layers, loading tensor by tensor, foreign formats, and merging."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import VOCABULARY, make_folder
from quantized import IDS, load, logits, settings
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.config.load import load_config
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
