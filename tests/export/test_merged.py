"""Merging layer by layer while reading gives what peft gives with the whole model in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_folder
from safetensors.torch import load_file, safe_open
from torch import Tensor
from tunings import CASES, fresh, logits, stir, stirred

from luthier.config.load import load_config
from luthier.core.errors import ModelError
from luthier.export.merge import write_merged
from luthier.export.merged import read_merged
from luthier.export.shards import write_shards
from luthier.export.source import Source, Weight, folder_source
from luthier.models.adapters import save_trained
from luthier.models.load import find
from luthier.tuning.lora import Lora

BY_LAYER = ["lora", "lora-named", "lora-patterns", "lora-saves", "rslora", "dora", "pissa", "oft", "ia3"]


def config_of(**given: Any) -> Any:
    return load_config({key: value for key, value in given.items() if value is not None}).config


def merged_source(adapter: Path, **given: Any) -> Source | str:
    config = config_of(model_name_or_path=str(adapter), **given)
    return read_merged(find(config.model), config.model, name="it")


def adapter_of(name: str, folder: Path, base: Path) -> Any:
    model = stirred(name, base)
    save_trained(model, folder, str(base))
    return model


@pytest.mark.parametrize("name", BY_LAYER)
def test_layer_by_layer_is_bit_equal_to_peft(name: str, tiny: Path, tmp_path: Path) -> None:
    adapter_of(name, tmp_path / "adapter", tiny)
    from peft import PeftModel

    expected = PeftModel.from_pretrained(fresh(tiny), str(tmp_path / "adapter")).merge_and_unload().state_dict()
    source = merged_source(tmp_path / "adapter")
    assert isinstance(source, Source), source
    assert source.weights.keys() <= expected.keys()
    for key, weight in source.weights.items():
        assert weight.shape == expected[key].shape
        torch.testing.assert_close(weight.read().float(), expected[key], rtol=0, atol=0, msg=key)
    moved = [k for k, v in fresh(tiny).state_dict().items() if not torch.equal(v, expected[k])]
    assert moved, "the adapter does nothing, so this test would prove nothing"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vera", "layers of VERA share what they learned"),
        ("tied", "its adapter changes an embedding that is also the head"),
    ],
)
def test_what_is_merged_as_a_whole_says_why_and_is_right(name: str, reason: str, tiny: Path, tmp_path: Path) -> None:
    base = tiny
    if name == "tied":
        base = make_folder("gemma3", tmp_path / "base")
        assert fresh(base).config.tie_word_embeddings
        model = stir(Lora(rank=2, modules_to_save=("embed_tokens",)).apply(fresh(base)))
        save_trained(model, tmp_path / "adapter", str(base))
    else:
        model = adapter_of(name, tmp_path / "adapter", base)
    assert merged_source(tmp_path / "adapter") == reason
    expected = logits(model)
    config = config_of(model_name_or_path=str(tmp_path / "adapter"), export_dtype="float32")
    (tmp_path / "out").mkdir()
    write_merged(config, tmp_path / "out", "it")
    torch.testing.assert_close(logits(fresh(tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(fresh(base))).abs().max() > 1e-3


def test_every_family_is_merged_as_peft_does(every_family_folder: Path, tmp_path: Path) -> None:
    model = stir(Lora(rank=2).apply(fresh(every_family_folder)))
    expected = logits(model)
    save_trained(model, tmp_path / "adapter", str(every_family_folder))
    config = config_of(model_name_or_path=str(tmp_path / "adapter"), export_dtype="float32")
    (tmp_path / "out").mkdir()
    source = write_merged(config, tmp_path / "out", "it")
    torch.testing.assert_close(logits(fresh(tmp_path / "out")), expected, rtol=1e-4, atol=1e-4)
    assert source.facts.architectures == [type(fresh(every_family_folder)).__name__]


def test_two_adapters_and_a_quantized_base(tiny: Path, tmp_path: Path) -> None:
    adapter_of("lora", tmp_path / "one", tiny)
    adapter_of("dora", tmp_path / "two", tiny)
    stack = f"{tmp_path / 'one'},{tmp_path / 'two'}"
    plain = config_of(model_name_or_path=str(tiny), adapter_name_or_path=stack)
    narrow = config_of(model_name_or_path=str(tiny), adapter_name_or_path=stack, quantization="nf4")
    sources = [read_merged(find(c.model), c.model, name="it") for c in (plain, narrow)]
    from luthier.export.merge import load_unmerged

    for config, source in zip((plain, narrow), sources, strict=True):
        assert isinstance(source, Source)
        expected = load_unmerged(config).merge_and_unload().state_dict()
        for key, weight in source.weights.items():
            torch.testing.assert_close(weight.read().float(), expected[key], rtol=0, atol=1e-6, msg=key)
    path = "model.layers.0.self_attn.q_proj.weight"
    difference = sources[0].weights[path].read() - sources[1].weights[path].read()  # type: ignore[union-attr]
    assert difference.abs().max() > 1e-4, "quantizing the base changed nothing"


def test_only_one_layer_is_read_at_a_time(tiny: Path, tmp_path: Path) -> None:
    adapter_of("lora", tmp_path / "adapter", tiny)
    source = merged_source(tmp_path / "adapter")
    assert isinstance(source, Source)
    open_now, most = 0, 0

    def counted(weight: Weight) -> Weight:
        def read() -> Tensor:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            value = weight.read()
            open_now -= 1
            return value

        return Weight(weight.shape, weight.dtype, read)

    weights = {key: counted(weight) for key, weight in source.weights.items()}
    files = write_shards(weights, tmp_path, dtype=torch.float32, shard_bytes=40_000)
    assert most == 1
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) < 90_000


# ---- files


def test_shards_are_safetensors_as_others_read_them(tiny: Path, tmp_path: Path) -> None:
    weights = folder_source(tiny).weights
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        files = write_shards(weights, folder, dtype=dtype, shard_bytes=30_000)
        assert len(files) > 2
        found = {key: value for file in files for key, value in load_file(file).items()}
        assert found.keys() == weights.keys()
        for key, value in found.items():
            assert value.dtype == dtype
            torch.testing.assert_close(value, weights[key].read().to(dtype), rtol=0, atol=0)
        with safe_open(files[0], "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    (tmp_path / "whole").mkdir()
    files = write_shards(weights, tmp_path / "whole", dtype=torch.float32, shard_bytes=10**9)
    assert [file.name for file in files] == ["model.safetensors"]
    assert not (tmp_path / "whole" / "model.safetensors.index.json").exists()


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    number = torch.arange(6, dtype=torch.int64).view(2, 3)
    write_shards({"n": Weight((2, 3), torch.int64, lambda: number)}, tmp_path, dtype=torch.bfloat16, shard_bytes=10**6)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["n"], number)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float32, "w is not finite; try"),
        (1e30, torch.float16, "w is not finite in float16; try export_dtype: float32"),
    ],
)
def test_weights_that_are_no_numbers_are_not_written(
    value: float, dtype: torch.dtype, message: str, tmp_path: Path
) -> None:
    broken = {"w": Weight((2,), torch.float32, lambda: torch.tensor([1.0, value]))}
    with pytest.raises(ModelError, match=message):
        write_shards(broken, tmp_path, dtype=dtype, shard_bytes=10**6)


def test_an_adapter_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapter_of("lora", tmp_path / "adapter", tiny)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    from safetensors.torch import save_file

    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, file)
    source = merged_source(tmp_path / "adapter")
    assert isinstance(source, Source)
    with pytest.raises(ModelError, match="the adapter does not fit model.layers.0"):
        [weight.read() for weight in source.weights.values()]


def test_cases_cover_every_tuning_that_is_merged() -> None:
    assert set(BY_LAYER) <= CASES.keys()
