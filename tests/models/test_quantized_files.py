"""Files that others quantized: GPTQ, AWQ and their like, and GGUF."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from quantized import load
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError
from luthier.models.load import resolve
from luthier.models.quantized import (
    QuantizedLinear,
    quantized_layers,
)


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
