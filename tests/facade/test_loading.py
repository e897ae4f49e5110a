"""from_pretrained: the same load under other words."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from datasets.fingerprint import Hasher

from luthier import FastLanguageModel, FastModel, FastTextModel, FastVisionModel
from luthier.core.errors import ConfigError, LuthierError
from luthier.facade.held import held_of
from luthier.models.quantized import quantized_layers


def load(folder: Path, **arguments: Any) -> tuple[Any, Any]:
    options = {"max_seq_length": 128, "load_in_4bit": False, **arguments}
    return FastLanguageModel.from_pretrained(str(folder), **options)


def test_an_ordinary_model_and_tokenizer(tiny: Path) -> None:
    model, tokenizer = load(tiny, dtype=torch.float32)
    assert type(model) is transformers.LlamaForCausalLM
    assert type(tokenizer).__name__ == type(transformers.AutoTokenizer.from_pretrained(tiny)).__name__
    assert (model.max_seq_length, tokenizer.model_max_length, tokenizer.padding_side) == (128, 128, "right")
    assert tokenizer.pad_token_id is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(model(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5)
    held = held_of(model)
    assert (held.asked, held.files.base, held.tokenizer is tokenizer) == (str(tiny), str(tiny), True)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, "nf4"),  # four bits are the usual
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_16bit": True}, None),
        ({"full_finetuning": True}, None),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}}, "fp4"),
    ],
)
def test_forms_of_weights(tiny: Path, arguments: dict[str, Any], kind: str | None) -> None:
    model, _ = FastModel.from_pretrained(str(tiny), max_seq_length=128, **arguments)
    assert {layer.kind for _, layer in quantized_layers(model)} == ({kind} if kind else set())
    learning = {p.requires_grad for p in model.parameters()}
    assert learning == {bool(arguments.get("full_finetuning"))}


def test_every_parameter_is_known_and_what_does_nothing_is_said(tiny: Path, said: list[str]) -> None:
    load(tiny, token=None, device_map="sequential", rope_scaling=None, fix_tokenizer=True, trust_remote_code=False,
         use_gradient_checkpointing="unsloth", revision=None, fast_inference=True, gpu_memory_utilization=0.6,
         max_lora_rank=32, random_state=3407, attn_implementation="eager", float8_kv_cache=True, text_only=True)  # fmt: skip
    for name in ("gpu_memory_utilization", "max_lora_rank", "attn_implementation", "float8_kv_cache"):
        assert len([line for line in said if line.startswith(f"{name}=")]) == 1
    with pytest.raises(TypeError, match="max_seq_lenght'; did you mean 'max_seq_length'"):
        load(tiny, max_seq_lenght=5)
    with pytest.raises(TypeError, match="twice"):
        FastLanguageModel.from_pretrained(str(tiny), model_name=str(tiny))


@pytest.mark.parametrize("argument", [{"load_in_fp8": True}, {"qat_scheme": "int4"}, {"num_labels": 2}, {"dtype": 4}])
def test_what_cannot_be_had_is_refused_with_a_reason(tiny: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(argument))):
        load(tiny, **argument)


def test_other_kinds_of_models_are_refused() -> None:
    assert FastTextModel is FastModel
    with pytest.raises(LuthierError, match="pictures"):
        FastVisionModel.from_pretrained("some/model")


def test_positions_are_stretched_for_longer_rows(tiny: Path, said: list[str]) -> None:
    model, tokenizer = load(tiny, max_seq_length=1000)
    assert model.config.rope_parameters["factor"] == 2.0
    assert (model.config.max_position_embeddings, tokenizer.model_max_length) == (1024, 1000)
    assert any("512 to 1024" in line for line in said)
    tuned = FastLanguageModel.get_peft_model(model, r=4)
    tuned.save_pretrained("adapter")
    again, _ = FastLanguageModel.from_pretrained("adapter", max_seq_length=128, load_in_4bit=False)
    assert again.config.rope_parameters["factor"] == 2.0


def test_a_model_without_such_positions_keeps_its_length(tmp_path: Path, said: list[str]) -> None:
    from helpers import make_folder

    model, _ = load(make_folder("gpt2", tmp_path / "gpt2"), max_seq_length=4096)
    assert model.max_seq_length < 4096
    assert any("cannot be stretched" in line for line in said)


def test_another_name_is_taken_only_when_there_is_nothing_by_the_first(said: list[str]) -> None:
    from luthier.facade.loading import _spellings

    name = "unsloth/SmolLM2-135M-Instruct-bnb-4bit"
    assert _spellings(name)[:3] == [name, "unsloth/SmolLM2-135M-Instruct", "smollm2-135m"]
    with pytest.raises(LuthierError, match=name):
        FastLanguageModel.from_pretrained(name, use_exact_model_name=True)
    assert not any("is loaded instead" in line for line in said)


def test_tokenizers_stay_what_they_are(tiny: Path, said: list[str]) -> None:
    _, tokenizer = load(tiny)
    ordinary = transformers.AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained("t")
    assert json.loads(Path("t/tokenizer_config.json").read_text())["tokenizer_class"] == type(ordinary).__name__
    for other in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert type(other) is type(tokenizer)
        assert other("a tea").input_ids == tokenizer("a tea").input_ids == ordinary("a tea").input_ids
    before = Hasher.hash(tokenizer)
    encoding = tokenizer(["a", "bcd"], padding=True, return_tensors="pt")
    assert Hasher.hash(tokenizer) == before
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], return_tensors="pt", return_dict=True)
    for each in (encoding, chat, tokenizer.pad({"input_ids": [[1], [2, 3]]}, return_tensors="pt")):
        assert each.to("cuda" if not torch.cuda.is_available() else "cpu")["input_ids"].device.type == "cpu"
    if not torch.cuda.is_available():
        assert len([line for line in said if "no GPU" in line]) == 1
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).to("cuda:9")


@pytest.mark.slow
def test_tokenizers_work_in_other_processes(tiny: Path) -> None:
    _, tokenizer = load(tiny)
    rows = Dataset.from_dict({"text": ["a", "bc", "def", "g"]})
    found = rows.map(lambda row: {"ids": tokenizer(row["text"])["input_ids"]}, num_proc=2)
    assert found["ids"] == [tokenizer(text).input_ids for text in rows["text"]]
