"""train_like: the same rows, losses and model as the trainer of TRL that it stands in for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from helpers import byte_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier import train_like

trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl==1.16.0")

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 8
TEXTS = {"text": [f"text {i} " + "abc " * (i % 4) for i in range(7)]}
ANSWERED = {
    "prompt": [f"what is {i} " for i in range(COUNT)],
    "completion": [f"it is {i}" + "!" * i for i in range(COUNT)],
}
PAIRS = {
    "prompt": [f"question {i} about tea " for i in range(COUNT)],
    "chosen": [f"please {i}" for i in range(COUNT)],
    "rejected": [f"no, {i} " + "x" * i for i in range(COUNT)],
}
TAGGED = {**ANSWERED, "label": [i % 3 > 0 for i in range(COUNT)]}
FULL_PAIRS = {
    side: [p + a for p, a in zip(PAIRS["prompt"], PAIRS[side], strict=True)] for side in ("chosen", "rejected")
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sft": ("SFT", TEXTS, {}),
    "sft of answers": ("SFT", ANSWERED, {"max_length": 14}),
    "sft packed": ("SFT", TEXTS, {"packing": True, "max_length": 48}),
    "dpo": ("DPO", PAIRS, {"max_length": 30}),
    "dpo ipo": ("DPO", PAIRS, {"loss_type": ["ipo"], "beta": 0.3}),
    "dpo and sft": ("DPO", PAIRS, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    "kto": ("KTO", TAGGED, {"beta": 0.5, "undesirable_weight": 1.3, "gradient_accumulation_steps": 1}),
    "reward": ("Reward", FULL_PAIRS, {"center_rewards_coefficient": 0.1}),
}


def model_of(folder: Path, kind: str, lora: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    loads = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    more = {"num_labels": 1} if kind == "Reward" else {}
    model = loads.from_pretrained(folder, dtype=torch.float32, **more)
    if not lora:
        return model
    task = "SEQ_CLS" if kind == "Reward" else "CAUSAL_LM"
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type=task))


def trainer_of(kind: str, model: Any, rows: dict[str, Any], folder: Path, **settings: Any) -> Any:
    args = getattr(trl, f"{kind}Config")(
        **{
            "output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "learning_rate": 2e-2,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
            "lr_scheduler_type": "cosine", "warmup_steps": 0.3, "logging_steps": 1, "save_strategy": "no", "seed": 11,
            "disable_tqdm": True, **settings,
        }
    )  # fmt: skip
    more = {"callbacks": settings.pop("callbacks", None)} if "callbacks" in settings else {}
    return getattr(trl, f"{kind}Trainer")(
        model=model, args=args, train_dataset=Dataset.from_dict(rows), processing_class=byte_tokenizer(), **more
    )


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_that_of_trl(case: str, tiny: Path, tmp_path: Path) -> None:
    kind, rows, settings = CASES[case]
    model = model_of(tiny, kind, lora=True)
    twin = copy.deepcopy(model)
    theirs = trainer_of(kind, twin, rows, tmp_path / "theirs", **settings)
    theirs.train()
    ours = trainer_of(kind, model, rows, tmp_path / "ours", **settings)
    trained, result = train_like(ours)
    assert trained is ours.model
    assert result.steps == ours.state.global_step == theirs.state.global_step
    assert losses(ours)[0] == pytest.approx(losses(theirs)[0], abs=1e-4)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-3)
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(model.get_parameter(name), parameter, atol=2e-3, rtol=1e-2)
