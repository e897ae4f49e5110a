"""DPO, KTO and ORPO as scripts write them: old names on the trainers, no second model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset

pytest.importorskip("trl")

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = {
    "prompt": [f"question {i} " + "about tea " * i for i in range(6)],
    "chosen": [f"please {i}" for i in range(6)],
    "rejected": [f"no, {i} is much too long an answer" for i in range(6)],
}


@pytest.fixture(params=["before", "after"])
def patched(request: pytest.FixtureRequest):
    """PatchDPOTrainer before TRL's names are imported into the script, and after."""
    from luthier.facade.old_names import deactivate

    deactivate()
    if request.param == "before":
        from luthier import PatchDPOTrainer

        PatchDPOTrainer()
    from trl import DPOConfig, DPOTrainer

    if request.param == "after":
        from luthier import PatchDPOTrainer

        PatchDPOTrainer()
    return DPOConfig, DPOTrainer


def model_of(folder: Path) -> tuple[Any, Any]:
    from luthier import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=256, load_in_4bit=False, dtype="float32"
    )
    model = FastLanguageModel.get_peft_model(model, r=8, target_modules=["q_proj", "v_proj", "up_proj"], lora_alpha=8)
    return model, tokenizer


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": 6, "max_steps": 2, "learning_rate": 5e-3, "logging_steps": 1,
        "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "optim": "adamw_8bit", "seed": 42,
        "output_dir": str(folder), "report_to": "none", **more,
    }  # fmt: skip


def test_dpo(patched: Any, tiny: Path, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    _, trainer_class = patched
    model, tokenizer = model_of(tiny)
    trainer = trainer_class(
        model=model,
        ref_model=None,
        args=TrainingArguments(**settings(tmp_path)),
        beta=0.1,
        train_dataset=Dataset.from_dict(PAIRS),
        tokenizer=tokenizer,
        max_length=64,
        max_prompt_length=16,
    )
    prompts = trainer.train_dataset["prompt_ids"]
    whole = [tokenizer(prompt)["input_ids"] for prompt in PAIRS["prompt"]]
    assert prompts == [ids[-16:] for ids in whole]
    assert max(map(len, whole)) > 16
    assert trainer.ref_model is None
    assert list(model.peft_config) == ["default"], "the reference is the model with its adapter off"
    trainer.train()
    first, second = losses(trainer)
    assert first == pytest.approx(math.log(2), abs=1e-4)
    assert second < first
    assert (trainer.args.beta, trainer.args.max_length) == (0.1, 64)


def test_a_trained_adapter_keeps_a_copy_as_reference(tiny: Path, tmp_path: Path) -> None:
    from luthier import PatchDPOTrainer

    PatchDPOTrainer()
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = model_of(tiny)
    rows = Dataset.from_dict(PAIRS)
    arguments: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "train_dataset": rows}
    DPOTrainer(args=DPOConfig(**settings(tmp_path / "one")), **arguments).train()
    again = DPOTrainer(args=DPOConfig(**settings(tmp_path / "two")), **arguments)
    assert list(model.peft_config) == ["default", "ref"]
    again.train()
    assert losses(again)[0] == pytest.approx(math.log(2), abs=1e-4)
    third = DPOTrainer(args=DPOConfig(**settings(tmp_path / "three")), **arguments)
    third.train()
    assert losses(third)[0] == pytest.approx(math.log(2), abs=1e-4)


def test_orpo(tiny: Path, tmp_path: Path) -> None:
    from luthier import PatchDPOTrainer

    PatchDPOTrainer()
    from trl import ORPOConfig, ORPOTrainer

    model, tokenizer = model_of(tiny)
    trainer = ORPOTrainer(
        model=model,
        train_dataset=Dataset.from_dict(PAIRS),
        tokenizer=tokenizer,
        args=ORPOConfig(**settings(tmp_path, max_length=64, max_prompt_length=16, max_completion_length=16, beta=0.1)),
    )
    row = trainer.train_dataset[5]
    assert tokenizer.decode(row["prompt_input_ids"]) == PAIRS["prompt"][5][-16:]
    trainer.train()
    first, second = losses(trainer)
    assert second < first


def test_kto_cuts_prompts_and_answers(tiny: Path, tmp_path: Path) -> None:
    from luthier import PatchKTOTrainer

    PatchKTOTrainer()
    from trl import KTOConfig, KTOTrainer

    model, tokenizer = model_of(tiny)
    rows = {"prompt": PAIRS["prompt"], "completion": PAIRS["rejected"], "label": [True, False] * 3}
    trainer = KTOTrainer(
        model=model, tokenizer=tokenizer, train_dataset=Dataset.from_dict(rows),
        args=KTOConfig(**settings(tmp_path, max_length=64, max_prompt_length=16, max_completion_length=8)),
    )  # fmt: skip
    assert max(map(len, trainer.train_dataset["prompt_ids"])) == 16
    assert {len(ids) for ids in trainer.train_dataset["completion_ids"]} == {8}
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.5, abs=1e-4)
