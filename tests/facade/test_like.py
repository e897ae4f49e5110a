"""train_like: the same rows, losses and model as the trainer of TRL that it stands in for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from helpers import byte_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from luthier import train_like
from luthier.core.errors import ConfigError

trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl==1.16.0")

if TYPE_CHECKING:
    from collections.abc import Callable
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


@pytest.mark.parametrize("kind", ["ORPO", "CPO"])
def test_objectives_without_a_reference(kind: str, tiny: Path, tmp_path: Path) -> None:
    from importlib import import_module

    module = import_module(f"trl.experimental.{kind.lower()}")
    rows = {**PAIRS, "prompt": ["q"] * COUNT, "chosen": [f"yes {i}" for i in range(COUNT)]}
    model = model_of(tiny, kind, lora=True)

    def made(model: Any, name: str) -> Any:
        args = getattr(module, f"{kind}Config")(
            output_dir=str(tmp_path / name), report_to="none", use_cpu=True, bf16=False, max_steps=2, logging_steps=1,
            learning_rate=1e-2, lr_scheduler_type="constant", per_device_train_batch_size=4, save_strategy="no",
        )  # fmt: skip
        trainer = getattr(module, f"{kind}Trainer")
        rows_here = Dataset.from_dict(rows)
        return trainer(model=model, args=args, train_dataset=rows_here, processing_class=byte_tokenizer())

    theirs, ours = made(copy.deepcopy(model), "theirs"), made(model, "ours")
    theirs.train()
    train_like(ours)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-3)


def test_a_whole_model_is_as_it_was_but_for_its_weights(tiny: Path, tmp_path: Path) -> None:
    model = model_of(tiny, "SFT", lora=False)
    twin = copy.deepcopy(model)
    attention = model.config._attn_implementation
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    theirs = trainer_of("SFT", twin, TEXTS, tmp_path / "theirs")
    theirs.train()
    ours = trainer_of("SFT", model, TEXTS, tmp_path / "ours", gradient_checkpointing=True)
    ours.eval_dataset = ours.train_dataset
    for name, value in settings.items():
        setattr(ours.args, name, value)
    _, result = train_like(ours)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-3)
    assert [line["step"] for line in ours.state.log_history if "eval_loss" in line] == [2, 4]
    assert (result.run / "checkpoint-4" / "model.safetensors").exists()
    assert model.config._attn_implementation == attention
    assert not [name for name, module in model.named_modules() if "_luthier_patched" in vars(module)]
    assert not any(getattr(layer, "gradient_checkpointing", False) for layer in model.model.layers)
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, twin(tokens).logits, atol=2e-2, rtol=2e-2)


def test_a_model_of_the_facade(tiny: Path, tmp_path: Path) -> None:
    from luthier import FastLanguageModel, UnslothTrainer, UnslothTrainingArguments

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(tiny), max_seq_length=64, load_in_4bit=False, dtype="float32"
    )
    model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "lm_head"])
    trainer = UnslothTrainer(
        model=model, tokenizer=tokenizer, train_dataset=Dataset.from_dict(TEXTS),
        args=UnslothTrainingArguments(
            output_dir=str(tmp_path), max_steps=1, learning_rate=1e-2, embedding_learning_rate=0.0, report_to="none",
            lr_scheduler_type="constant", save_strategy="no", logging_steps=1,
        ),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train_like(trainer)
    moved = {name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert any("q_proj" in name for name in moved)
    assert not any("lm_head" in name for name in moved)
    trainer.train()


class _Mine(TrainerCallback):
    pass


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Any], None], str]] = {
    "label smoothing": ({"label_smoothing_factor": 0.1}, lambda _: None, "label_smoothing_factor=0.1"),
    "noise": ({"neftune_noise_alpha": 5.0}, lambda _: None, "neftune_noise_alpha=5.0"),
    "loss": ({"loss_type": "dft"}, lambda _: None, "loss_type='dft'"),
    "optimizer": ({"optim": "lion_32bit"}, lambda _: None, "optim='lion_32bit'"),
    "schedule": ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}, lambda _: None, "plateau"),
    "callback": ({}, lambda trainer: trainer.add_callback(_Mine()), "the callback _Mine"),
    "metrics": ({}, lambda trainer: setattr(trainer, "compute_metrics", print), "compute_metrics"),
    "steps": ({"logging_steps": 0.5}, lambda _: None, "logging_steps=0.5"),
    "best": ({"load_best_model_at_end": True, "eval_strategy": "steps"}, lambda _: None, "load_best_model_at_end"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(case: str, tiny: Path, tmp_path: Path) -> None:
    settings, change, told = REFUSED[case]
    rows = Dataset.from_dict(TEXTS)
    args = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, save_strategy="steps", **settings
    )
    model = model_of(tiny, "SFT", lora=True)
    trainer = trl.SFTTrainer(
        model=model, args=args, train_dataset=rows, eval_dataset=rows, processing_class=byte_tokenizer()
    )  # fmt: skip
    change(trainer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=told):
        train_like(trainer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list((tmp_path / "out").glob("*luthier*"))


def test_only_trainers_of_trl() -> None:
    with pytest.raises(ConfigError, match="SFTTrainer"):
        train_like(object())


def test_grpo(tiny: Path, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": f"count to {i}", "answer": str(i)} for i in range(4)])
    seen: list[tuple[str, str]] = []

    def has_answer(prompts: Any, completions: Any, answer: list[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, answer, strict=True))
        return [float(len(set(text))) for text in completions]

    def nothing(completions: Any, **_: Any) -> list[float]:
        return [0.0] * len(completions)

    args = trl.GRPOConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_steps=3, logging_steps=1,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=8, learning_rate=1e-2, beta=0.04,
        use_bias_correction_kl=False, loss_type="dr_grpo", scale_rewards="none", save_strategy="no",
        reward_weights=[0.5, 1.0],
    )  # fmt: skip
    model = model_of(tiny, "GRPO", lora=True)
    trainer = trl.GRPOTrainer(
        model=model, args=args, train_dataset=rows, processing_class=byte_tokenizer(), reward_funcs=[has_answer, nothing]
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trained, result = train_like(trainer)
    assert (trained, result.steps) == (model, 3)
    assert len(seen) == 12
    assert all(prompt == f"count to {answer}" for prompt, answer in seen)
    assert len(set(seen)) == 3
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    line = trainer.state.log_history[0]
    assert line["reward/has_answer"] == pytest.approx(2 * line["reward"], rel=1e-3)

    args.num_iterations, args.min_p = 2, 0.1
    with pytest.raises(ConfigError, match=r"min_p=0\.1"):
        train_like(trainer)
