"""Training of reward models, from pairs to a folder that grades."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import losses, make_folder, stop_after
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, Interrupted, ModelError
from luthier.core.registry import OBJECTIVES
from luthier.core.types import Message
from luthier.models.device import place
from luthier.models.reward_files import is_reward_folder, read_head
from luthier.models.reward_model import load_reward_model
from luthier.runs.store import read_events
from luthier.workflows.chat import open_conversations
from luthier.workflows.estimate import estimate
from luthier.workflows.evaluate import evaluate
from luthier.workflows.train import train

ANSWERS = ["please stone", "21 no"]
FULL = {"finetuning_type": "full", "lora_rank": None}


def settings(model: Path, pairs: Path, run: Path, **more: Any):
    base = {"model_name_or_path": str(model), "dataset": str(pairs), "output_dir": str(run), "stage": "rm", "lora_rank": 4,
            "learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 8, "dtype": "float32", "plot_loss": False,
            "cutoff_len": 128, "lr_scheduler_type": "constant", "threads": 1}  # fmt: skip
    return load_config({**base, **more}).config


def events(run: Path, name: str, kind: str = "train") -> list[float]:
    return [event[name] for event in read_events(run, kind)]


def graded(run: Path, **more: Any) -> torch.Tensor:
    """The reward of a polite and of another answer."""
    config = load_config({"model_name_or_path": str(run), "dtype": "float32", "threads": 1, **more}).config.model
    model = load_reward_model(str(run), config, place(config))
    return model.score_text([[Message(role="user", content="say tea 3")]] * 2, ANSWERS)


@pytest.mark.parametrize("tuning", [{}, FULL], ids=["lora", "full"])
def test_separable_pairs_are_learned(tiny: Path, pairs: Path, tmp_path: Path, tuning: dict[str, Any]) -> None:
    more = {**tuning, "val_size": 4, "max_steps": -1, "num_train_epochs": 8, "eval_strategy": "epoch"}
    train(settings(tiny, pairs, tmp_path / "run", learning_rate=2e-2 if not tuning else 3e-3, **more), quiet=True)
    assert next(v for k, v in read_events(tmp_path / "run", "train")[-1].items() if "accurac" in k) == 1.0
    assert next(v for k, v in read_events(tmp_path / "run", "eval")[-1].items() if "accurac" in k) == 1.0
    polite, other = graded(tmp_path / "run")
    assert polite > other + 1


@pytest.mark.parametrize("tuning", [{"lora_dropout": 0.2}, FULL], ids=["lora", "full"])
def test_six_lines_of_plain_transformers(tiny: Path, pairs: Path, tmp_path: Path, tuning: dict[str, Any]) -> None:
    train(settings(tiny, pairs, tmp_path / "run", **tuning), quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    if tuning is FULL:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run", num_labels=1)
    else:
        from peft import PeftModel

        base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
        model = PeftModel.from_pretrained(base, tmp_path / "run").eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    turns = [[{"role": "user", "content": "say tea 3"}, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    texts = [tokenizer.apply_chat_template(each, tokenize=False).rstrip() for each in turns]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(found[:, 0], graded(tmp_path / "run"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [{"lora_dropout": 0.2}, FULL, {"finetuning_type": "freeze", "lora_rank": None, "freeze_trainable_layers": 1},
     {"quantization": "nf4", "lora_dropout": 0.2}, {"finetuning_type": "bottleneck", "lora_rank": None, "tuning": {"size": 8}},
     {"finetuning_type": "prefix", "lora_rank": None}, {"finetuning_type": "prompt", "lora_rank": None},
     {"pissa_init": True}],
    ids=["lora", "full", "freeze", "quantized", "bottleneck", "prefix", "prompt", "pissa"],
)  # fmt: skip
def test_resume_is_bit_identical(tiny: Path, pairs: Path, tmp_path: Path, monkeypatch, more: dict[str, Any]) -> None:
    more = {**more, "save_steps": 1, "learning_rate": 1e-3}
    train(settings(tiny, pairs, tmp_path / "whole", **more), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tiny, pairs, tmp_path / "run", **more), quiet=True)
    with safe_open(tmp_path / "run" / "checkpoint-2" / "optimizer.safetensors", framework="pt") as file:
        assert "value_head.weight|exp_avg" in set(file.keys())
    train(settings(tiny, pairs, tmp_path / "run", resume="must", **more), quiet=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    heads = [
        read_head(tmp_path / name, settings(tiny, pairs, tmp_path / name).model).weight for name in ("run", "whole")
    ]
    torch.testing.assert_close(*heads, rtol=0, atol=0)


def test_training_goes_on_from_a_reward_model(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """As its adapter, below a new one, or as the whole model: what it learned is where training begins."""
    rows = {"per_device_train_batch_size": 22, "learning_rate": 1e-30, "max_steps": 1}
    for name, tuning in (("lora", {}), ("full", FULL)):
        train(
            settings(tiny, pairs, tmp_path / name, **{**rows, **tuning, "max_steps": 3, "learning_rate": 1e-3}),
            quiet=True,
        )
        expected = graded(tmp_path / name)
        for how, more in (
            ("on", tuning),
            ("new", {"create_new_adapter": True}),
            ("merged", {**FULL, "create_new_adapter": True}),
        ):
            run = tmp_path / f"{name}-{how}"
            train(settings(tmp_path / name, pairs, run, **{**rows, **more}), quiet=True)
            torch.testing.assert_close(graded(run), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tuning", [{}, FULL], ids=["lora", "full"])
def test_nothing_but_grading(tiny: Path, pairs: Path, rows: Path, tmp_path: Path, tuning: dict[str, Any]) -> None:
    """Chat, evaluation, other objectives and references refuse a folder that cannot write, and say what it is."""
    run = tmp_path / "run"
    train(settings(tiny, pairs, run, max_steps=1, **tuning), quiet=True)
    assert is_reward_folder(run)
    told = {"model_name_or_path": str(run), "eval_dataset": str(rows), "dtype": "float32"}
    sft = {**told, "eval_dataset": None, "stage": "sft", "dataset": str(rows), "output_dir": str(tmp_path / "sft")}
    dpo = {"stage": "dpo", "ref_model": str(run)}
    check_refused(lambda: open_conversations(load_config(told).config, compare=False))
    check_refused(lambda: evaluate(load_config(told).config))
    check_refused(lambda: train(load_config(sft).config, quiet=True))
    check_refused(lambda: train(settings(tiny, pairs, tmp_path / "dpo", **dpo), quiet=True))
    assert not (tmp_path / "sft").exists()
    assert not (tmp_path / "dpo").exists()


def check_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ModelError, match="is a reward model: it grades answers and writes none") as caught:
        call()
    assert caught.value.exit_code == 2


def test_families_that_cannot_be_saved_are_refused(pairs: Path, tmp_path: Path) -> None:
    folder = make_folder("granite", tmp_path / "granite")
    with pytest.raises(ConfigError, match="no sequence-classification class for model type 'granite'"):
        train(settings(folder, pairs, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "run").exists()


def test_bfloat16_leaves_the_head_alone(tiny: Path, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    from luthier.models import device

    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: True)
    for name, tuning in (("lora", {}), ("full", FULL)):
        train(settings(tiny, pairs, tmp_path / name, dtype="bfloat16", max_steps=2, **tuning), quiet=True)
    adapter = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert adapter["base_model.model.score.weight"].dtype == torch.float32
    assert load_file(tmp_path / "full" / "model.safetensors")["score.weight"].dtype == torch.float32
    assert graded(tmp_path / "lora", dtype="bfloat16").dtype == torch.float32


def test_memory_is_measured_with_the_head(tiny: Path, pairs: Path, tmp_path: Path) -> None:
    config = settings(tiny, pairs, tmp_path / "run")
    head = 320 * 32
    assert estimate(config).parameters + head == estimate(replace(config, objective=OBJECTIVES.get("dpo")())).parameters
    train(settings(tiny, pairs, tmp_path / "run", memory_budget="3GB", max_steps=1), quiet=True)
    assert events(tmp_path / "run", "loss")
