"""get_peft_model: a real peft model from the tuning shelf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModelForCausalLM

from luthier import FastLanguageModel, FastModel
from luthier.core.errors import ConfigError
from luthier.facade.held import held_of

if TYPE_CHECKING:
    from pathlib import Path


def targets(model: Any) -> set[str]:
    return {path.rpartition(".")[2] for path, module in model.named_modules() if hasattr(module, "lora_A")}


def test_a_peft_model_with_an_adapter_in_float32(tiny: Path) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128)  # 4 bits
    tuned = FastLanguageModel.get_peft_model(
        model, r=4, target_modules=["q_proj", "v_proj"], lora_alpha=8, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth", random_state=3407, use_rslora=True, loftq_config=None,
        max_seq_length=128, modules_to_save=["embed_tokens"],
    )  # fmt: skip
    assert type(tuned) is PeftModelForCausalLM
    assert list(tuned.peft_config) == ["default"]
    assert targets(tuned) == {"q_proj", "v_proj"}
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    assert tuned.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 8 / 4**0.5
    for name in ("for_inference", "for_training", "save_pretrained_merged", "save_pretrained_gguf", "save_lora"):
        assert getattr(tuned, name).__self__ is tuned
    assert held_of(tuned) is held_of(model)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ({"target_modules": "all-linear", "finetune_attention_modules": False}, {"gate_proj", "up_proj", "down_proj"}),
        ({"finetune_mlp_modules": False, "finetune_vision_layers": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"target_modules": r".*\.mlp\.(up|down)_proj"}, {"up_proj", "down_proj"}),
        ({"target_modules": ["q_proj", "lm_head"]}, {"q_proj"}),
    ],
)
def test_targets(plain: tuple[Any, Any], arguments: dict[str, Any], names: set[str]) -> None:
    tuned = FastModel.get_peft_model(plain[0], r=4, **arguments)
    assert targets(tuned) == names
    whole = {"lm_head"} & set(arguments.get("target_modules") or ())
    assert set(tuned.peft_config["default"].modules_to_save or ()) == whole


@pytest.mark.parametrize("arguments", [{"finetune_last_n_layers": 1}, {"layers_to_transform": [1]}])
def test_only_some_layers(plain: tuple[Any, Any], arguments: dict[str, Any]) -> None:
    tuned = FastLanguageModel.get_peft_model(plain[0], r=4, **arguments)
    reached = {name.split("layers.")[1][0] for name, p in tuned.named_parameters() if "lora_A" in name}
    assert reached == {"1"}
    with pytest.raises(TypeError, match="layers"):
        FastLanguageModel.get_peft_model(tuned, r=4)


def test_the_same_seed_gives_the_same_matrices(tiny: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        model, _ = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, load_in_4bit=False)
        torch.rand(seed)  # numbers that were drawn before do not count
        tuned = FastLanguageModel.get_peft_model(model, r=4, random_state=seed)
        found.append(next(p.detach() for n, p in tuned.named_parameters() if "lora_A" in n))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_again_with_the_same_or_other_arguments(plain: tuple[Any, Any]) -> None:
    tuned = FastLanguageModel.get_peft_model(plain[0], r=4, lora_alpha=8)
    assert FastLanguageModel.get_peft_model(tuned, r=4, lora_alpha=8) is tuned
    with pytest.raises(TypeError, match="r 4, and 8"):
        FastLanguageModel.get_peft_model(tuned, r=8, lora_alpha=8)


def test_an_adapter_folder_goes_on_learning(tuned: tuple[Any, Any], said: list[str]) -> None:
    model, tokenizer = tuned
    model.save_pretrained("adapter")
    tokenizer.save_pretrained("adapter")
    again, _ = FastLanguageModel.from_pretrained("adapter", max_seq_length=128, dtype="float32", load_in_4bit=False)
    ids = tokenizer("tea", return_tensors="pt")
    assert torch.allclose(again(**ids).logits, model(**ids).logits, atol=1e-5)
    assert sum(p.requires_grad for p in again.parameters()) == 28
    assert FastLanguageModel.get_peft_model(again, r=4, lora_alpha=8) is again
    theirs = AutoPeftModelForCausalLM.from_pretrained("adapter", dtype=torch.float32)
    assert torch.allclose(theirs(**ids).logits, model(**ids).logits, atol=1e-5)


def test_full_finetuning_puts_no_adapter_on(tiny: Path, said: list[str]) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, full_finetuning=True)
    assert FastLanguageModel.get_peft_model(model, r=4) is model
    assert any("every weight learns" in line for line in said)


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"bias": "all"}, ConfigError),
        ({"qat_scheme": "int4"}, ConfigError),
        ({"init_lora_weights": "corda"}, ConfigError),
        ({"init_lora_weights": False}, ConfigError),
        ({"target_modules": ["q_porj"]}, ConfigError),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, ConfigError),
        ({"layers_to_transform": [7]}, ConfigError),
        ({"r": 0}, TypeError),
        ({"r": 4.0}, TypeError),
        ({"lora_aplha": 4}, TypeError),
    ],
)
def test_what_cannot_be_had(plain: tuple[Any, Any], argument: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"lora_alpha|" + next(iter(argument))):
        FastLanguageModel.get_peft_model(plain[0], **{"r": 4, **argument})
    assert not hasattr(plain[0], "peft_config")


def test_starts(tiny: Path) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, dtype="float32")
    tuned = FastLanguageModel.get_peft_model(model, r=4, init_lora_weights="loftq", loftq_config={"loftq_iter": 1})
    assert any(bool(p.any()) for n, p in tuned.named_parameters() if "lora_B" in n)


def test_a_model_of_somebody_else(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(TypeError, match="FastLanguageModel"):
        FastLanguageModel.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), r=4)


def test_what_learns_whole_is_float32_over_a_narrow_base(tiny: Path, tmp_path: Path) -> None:
    from helpers import make_folder
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from luthier.models.whole import learn_in_float32

    for folder, tied in ((tiny, False), (make_folder("llama_tied", tmp_path / "tied"), True)):
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        config = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"][: 2 - tied],
                            ensure_weight_tying=tied)  # fmt: skip
        model = get_peft_model(base, config)
        before = model(input_ids=torch.tensor([[1, 2, 3]])).logits.float()
        assert learn_in_float32(model) > 0
        learning = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in learning} == {torch.float32}
        after = model(input_ids=torch.tensor([[1, 2, 3]])).logits
        assert torch.allclose(before, after.float(), atol=0.02)
        after.float().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in learning if p.dim() == 2 and len(p) > 100)
