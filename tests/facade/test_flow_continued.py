"""Continued pretraining with embeddings and output head, then an instruction stage on the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

pytest.importorskip("trl")

if TYPE_CHECKING:
    from pathlib import Path

STORIES = Dataset.from_dict({"text": [f"story {i} of tea " * 3 for i in range(8)]})
ORDERS = Dataset.from_dict({"text": [f"do {i}, done {i}" for i in range(8)]})


def trainer_of(model: Any, tokenizer: Any, rows: Dataset, folder: Path, **arguments: Any) -> Any:
    from luthier import UnslothTrainer, UnslothTrainingArguments, is_bfloat16_supported

    return UnslothTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows,
        dataset_text_field="text",
        max_seq_length=128,
        args=UnslothTrainingArguments(
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=2,
            warmup_ratio=0.1,
            learning_rate=5e-3,
            fp16=not is_bfloat16_supported(),
            bf16=is_bfloat16_supported(),
            logging_steps=1,
            optim="adamw_8bit",
            weight_decay=0.01,
            lr_scheduler_type="constant",
            seed=3407,
            output_dir=str(folder),
            report_to="none",
            **arguments,
        ),
    )


def test_two_stages_on_one_model(tiny: Path, tmp_path: Path) -> None:
    from luthier import FastLanguageModel, unsloth_train

    model, tokenizer = FastLanguageModel.from_pretrained(model_name=str(tiny), max_seq_length=128, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model,
        r=8,
        target_modules=["q_proj", "v_proj", "gate_proj", "embed_tokens", "lm_head"],
        lora_alpha=16,
        use_gradient_checkpointing="unsloth",
        random_state=3407,
        use_rslora=True,
        loftq_config=None,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    whole = {name for name in before if "modules_to_save" in name}
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in whole} == {"embed_tokens", "lm_head"}

    first = trainer_of(model, tokenizer, STORIES, tmp_path / "first", embedding_learning_rate=1e-4)
    stats = unsloth_train(first)
    assert stats.metrics["train_runtime"] > 0
    rates = {id(p): group["lr"] for group in first.optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(before)
    for name, parameter in model.named_parameters():
        if name in before:
            assert rates[id(parameter)] == (1e-4 if name in whole else 5e-3), name
            assert not torch.equal(parameter, before[name]), name

    stopped = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    second = trainer_of(model, tokenizer, ORDERS, tmp_path / "second")
    second.train()
    assert {group["lr"] for group in second.optimizer.param_groups} == {5e-3}
    assert any(not torch.equal(p, stopped[name]) for name, p in model.named_parameters() if name in stopped)

    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, save_method="merged_16bit")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    learned = {name: p for name, p in model.named_parameters() if name in whole}
    for name, parameter in learned.items():
        there = getattr(merged, "lm_head", None) if "lm_head" in name else merged.model.embed_tokens
        torch.testing.assert_close(there.weight, parameter.to(there.weight.dtype))


def test_a_rate_for_embeddings_that_do_not_learn_is_said(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from luthier import FastLanguageModel, UnslothTrainingArguments
    from luthier.facade import trainers

    lines: list[str] = []
    monkeypatch.setattr(trainers, "say_once", lines.append)
    model, tokenizer = FastLanguageModel.from_pretrained(model_name=str(tiny), max_seq_length=128, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj"])
    trainer = trainer_of(model, tokenizer, ORDERS, tmp_path, embedding_learning_rate=1e-4)
    trainer.create_optimizer()
    assert [line for line in lines if "neither embed_tokens nor lm_head" in line]
    with pytest.raises(TypeError, match="Q-GaLore"):
        UnslothTrainingArguments(output_dir=str(tmp_path), q_galore_config={})
