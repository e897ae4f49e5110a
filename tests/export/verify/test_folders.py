"""Merged folders and adapters: a good one has nothing red, each damage is found by its own check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import damaged, red
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError
from luthier.export.gguf import write_adapter_gguf
from luthier.export.merge import write_source
from luthier.export.source import Source, Weight
from luthier.export.verify import verify_adapter, verify_file, verify_gguf_adapter, verify_merged
from luthier.export.verify.folders import LogitsOf
from luthier.export.verify.reference import Reference


@pytest.fixture(scope="module")
def logits_of(source: Source) -> LogitsOf:
    return lambda prompts: [Reference(source).logits(ids) for ids in prompts]


@pytest.fixture(scope="module")
def written(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes the model in a number format, in several files."""
    folder = tmp_path_factory.mktemp("written")

    def get(dtype: str) -> Path:
        path = folder / dtype
        if not path.exists():
            path.mkdir()
            write_source(source, path, dtype=getattr(torch, dtype), shard_bytes=60_000)
        return path

    return get


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_good_folder(dtype: str, source: Source, written: Callable[[str], Path], logits_of: LogitsOf) -> None:
    report = verify_merged(written(dtype), logits_of=logits_of, source=source)
    assert red(report) == set(), report.table()
    assert report.not_done == ()
    numbers = {check.name: check.numbers for check in report.checks}
    assert numbers["files"]["files"] > 1
    assert numbers["reload"]["worst_logit"] <= {"float32": 1e-5, "bfloat16": 0.5, "float16": 0.1}[dtype]
    assert numbers["weights"]["worst_roundings"] <= 1
    assert red(verify_file(written(dtype))) == set()


def test_a_folder_larger_than_memory(
    source: Source, written: Callable[[str], Path], logits_of: LogitsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.export.verify.reference.free_memory", lambda: 1000)
    report = verify_merged(written("float16"), logits_of=logits_of, source=source)
    assert not red(report)
    assert [check.name for check in report.not_done] == ["reload"]


def _in_file(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})


def _in_json(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


Q = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def _nudge(folder: Path) -> None:
    _in_file(folder, lambda t: t[Q].mul_(1.001) if Q in t else None)


def _scramble(folder: Path) -> None:
    _in_file(folder, lambda t: t[Q].neg_() if Q in t else None)


def _nan(folder: Path) -> None:
    _in_file(folder, lambda t: t["model.norm.weight"].fill_(float("nan")) if "model.norm.weight" in t else None)


def _lose(folder: Path) -> None:
    _in_file(folder, lambda t: t.pop(Q, None))
    _in_json(folder, INDEX, lambda i: i["weight_map"].pop(Q))
    _in_json(folder, INDEX, lambda i: i["metadata"].pop("total_size"))


def _cut(folder: Path) -> None:
    file = min(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def _wrong_index(folder: Path) -> None:
    _in_json(folder, INDEX, lambda i: i["weight_map"].update({Q: "model-00003-of-00009.safetensors"}))


def _wrong_sum(folder: Path) -> None:
    _in_json(folder, INDEX, lambda i: i["metadata"].update(total_size=1))


def _goes_on(folder: Path) -> None:
    _in_json(folder, "generation_config.json", lambda g: g.update(eos_token_id=5))


def _epsilon(folder: Path) -> None:
    _in_json(folder, "config.json", lambda c: c.update(rms_norm_eps=0.1))


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


def _merges(folder: Path) -> None:
    _in_json(folder, "tokenizer.json", lambda t: t["model"]["merges"].pop(0))


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (_nudge, {"weights"}),
        (_scramble, {"weights", "reload"}),
        (_nan, {"weights", "reload"}),
        (_lose, {"weights", "reload"}),
        (_cut, {"files"}),
        (_wrong_index, {"files"}),
        (_wrong_sum, {"files"}),
        (_goes_on, {"generation config"}),
        (_epsilon, {"config", "reload"}),
        (_template, {"tokenizer"}),
        (_merges, {"tokenizer"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_damage_is_found(
    damage: Callable[[Path], None],
    wanted: set[str],
    source: Source,
    written: Callable[[str], Path],
    logits_of: LogitsOf,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(written("float32"), folder)
    damage(folder)
    assert red(verify_merged(folder, logits_of=logits_of, source=source)) >= wanted


def test_one_rounding_too_many(source: Source, written: Callable[[str], Path], tmp_path: Path) -> None:
    """A weight that was rounded to bfloat16 on its way to float16."""
    folder = tmp_path / "damaged"
    shutil.copytree(written("float16"), folder)
    _in_file(folder, lambda t: t.update({Q: t[Q].bfloat16().half()}) if Q in t else None)
    assert "weights" in red(verify_merged(folder, logits_of=None, source=source))


def test_logits_that_cannot_be_asked(source: Source, written: Callable[[str], Path]) -> None:
    report = verify_merged(written("float32"), logits_of=None, source=source)
    assert red(report) == set()
    assert "not compared" in {check.name: check.found for check in report.checks}["reload"]


def test_a_folder_alone(written: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(written("float32"), folder)
    _nan(folder)
    report = verify_file(folder)
    assert red(report) >= {"weights", "reload"}
    assert {check.name for check in report.not_done} == {"config", "generation config"}


def test_what_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a GGUF file nor a folder"):
        verify_file(tmp_path)


# ---- adapters


@pytest.fixture(scope="module")
def adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "k_proj", "down_proj"],
                        alpha_pattern={"down_proj": 6}, task_type="CAUSAL_LM")  # fmt: skip
    tuned = get_peft_model(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    tuned.save_pretrained(folder)
    return folder


def test_a_good_adapter(adapter: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter, folder)
    report = verify_adapter(folder, trained=adapter, base=str(model_folder))
    assert red(report) == set(), report.table()
    assert report.not_done == ()
    assert red(verify_file(folder)) == set()


def test_an_adapter_that_was_changed(adapter: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter, folder)
    first = min(load_file(adapter / "adapter_model.safetensors"))
    _in_file(folder, lambda t: t[first].add_(1e-3))
    _in_json(folder, "adapter_config.json", lambda c: c.update(lora_alpha=13))
    assert red(verify_adapter(folder, trained=adapter, base=str(model_folder))) == {"weights", "settings"}
    _in_json(folder, "adapter_config.json", lambda c: c.update(target_modules=["q_proj"]))
    report = verify_adapter(folder, trained=adapter, base=str(model_folder))
    assert "opens in peft" in red(report)


def test_a_bottleneck_adapter_is_not_for_peft(adapter: Path, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter, folder)
    _in_json(folder, "adapter_config.json", lambda c: c.update(peft_type="BOTTLENECK"))
    report = verify_adapter(folder, trained=folder, base=str(model_folder))
    assert {check.name for check in report.not_done} == {"opens in peft"}
    assert "peft does not know" in report.not_done[0].found


def test_a_gguf_adapter(adapter: Path, source: Source, tmp_path: Path) -> None:
    file = write_adapter_gguf(adapter, source, tmp_path / "good.gguf")
    assert red(verify_gguf_adapter(file, adapter, source)) == set()
    scaled = damaged(file, tmp_path / "scaled.gguf", values={"adapter.lora.alpha": 13.0})
    assert red(verify_gguf_adapter(scaled, adapter, source)) == {"weights"}

    def drop(tensors: dict) -> None:
        for name in [n for n in tensors if "blk.0.attn_k" in n]:
            del tensors[name]

    assert "weights" in red(verify_gguf_adapter(damaged(file, tmp_path / "c.gguf", change=drop), adapter, source))


def test_the_reference_reads_each_weight_once(source: Source) -> None:
    read: list[str] = []

    def counted(name: str, weight: Weight) -> Weight:
        def get() -> torch.Tensor:
            read.append(name)
            return weight.read()

        return Weight(weight.shape, weight.dtype, get)

    weights = {name: counted(name, weight) for name, weight in source.weights.items()}
    Reference(Source(source.name, source.facts, source.tokenizer, source.generation, weights))
    assert sorted(read) == sorted(source.weights)
