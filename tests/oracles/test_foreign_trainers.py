"""Trainers of TRL and transformers, unchanged, take two steps with a plain model and with a lent one: the same losses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from helpers import byte_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.trainer_utils import set_seed
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from luthier.models import lent
from luthier.models.lent import lend

WORDS = ["tea", "a longer answer about the weather of today", "stone", "你好", "x", "some more words here"]
PROMPTS = [f"please say {word} twice to the friend who asked" for word in WORDS]
PAIRS = {"prompt": PROMPTS, "chosen": WORDS, "rejected": [f"no {word}, never" for word in WORDS[::-1]]}
COMPLETED = {"prompt": PROMPTS, "completion": WORDS}
LABELLED = {**COMPLETED, "label": [True, False] * 3}
LORA = LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian")
PACKED = pytest.mark.filterwarnings("ignore:.*packing.*", "ignore:.*padding-free.*", "ignore:.*flash.*")


@pytest.fixture(autouse=True)
def _exact_again() -> Iterator[None]:
    """A trainer in bfloat16 makes that the precision of the whole process, for whoever trains next."""
    yield
    torch.backends.fp32_precision = "ieee"
    AcceleratorState._reset_state(reset_partial_state=True)


def length_of_answer(completions: Any, **_: Any) -> list[float]:
    return [float(len(completion) % 7) for completion in completions]


def causal(folder: Path, *, adapter: bool = False) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    set_seed(0)
    return get_peft_model(model, LORA) if adapter else model


def run(tmp_path: Path, model: Any, trainer: Any, config: Any, rows: Any, more: Any = None, **settings: Any) -> Any:
    """Train for two steps, return the trainer."""
    set_seed(0)
    args = config(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
        learning_rate=1e-2, disable_tqdm=True, seed=1, **{"bf16": False, "gradient_checkpointing": False, **settings},
    )  # fmt: skip
    made = trainer(
        model=model, args=args, train_dataset=Dataset.from_dict(rows), processing_class=byte_tokenizer(), **(more or {})
    )
    made.train()
    return made


def losses(trainer: Any) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def logged(trainer: Any, names: tuple[str, ...]) -> list[float]:
    return [log[name] for log in trainer.state.log_history if "loss" in log for name in ("loss", "grad_norm", *names)]


@pytest.fixture
def packed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each packed pass has computed."""
    counts: list[int] = []
    plain = lent.rows_of

    def counting(*args: Any) -> Any:
        rows = plain(*args)
        counts.append(-1 if rows is None else rows.input_ids.shape[1])
        return rows

    monkeypatch.setattr(lent, "rows_of", counting)
    return counts


SETTINGS: dict[str, tuple[Any, Any, Any, dict[str, Any], tuple[str, ...]]] = {
    "sft": (SFTTrainer, SFTConfig, COMPLETED, {}, ("entropy", "mean_token_accuracy", "num_tokens")),
    "sft flattened": (SFTTrainer, SFTConfig, COMPLETED, {"padding_free": True, "max_length": None}, ("entropy",)),
    "sft packed": (SFTTrainer, SFTConfig, COMPLETED, {"packing": True, "max_length": 150}, ("entropy",)),
    "sft recomputed": (SFTTrainer, SFTConfig, COMPLETED, {"gradient_checkpointing": True}, ("entropy",)),
    "sft accumulated": (SFTTrainer, SFTConfig, COMPLETED, {"gradient_accumulation_steps": 2}, ("entropy",)),
    "dpo": (DPOTrainer, DPOConfig, PAIRS, {}, ("rewards/margins", "logps/chosen", "logits/chosen")),
    "dpo precomputed": (DPOTrainer, DPOConfig, PAIRS, {"precompute_ref_log_probs": True}, ("rewards/margins",)),
    "kto": (KTOTrainer, KTOConfig, LABELLED, {}, ("logps/chosen",)),
    "grpo": (
        GRPOTrainer,
        GRPOConfig,
        {"prompt": PROMPTS},
        {"num_generations": 3, "max_completion_length": 9, "beta": 0.1, "per_device_train_batch_size": 6},
        ("entropy", "kl", "reward"),
    ),
}


@PACKED
@pytest.mark.parametrize("name", SETTINGS)
def test_adapters_under_trl(name: str, folder: Path, tmp_path: Path, packed_rows: list[int]) -> None:
    trainer, config, rows, settings, names = SETTINGS[name]
    more = {"reward_funcs": length_of_answer} if trainer is GRPOTrainer else {}
    settings = {"per_device_train_batch_size": 3, **settings}
    plain = run(tmp_path, causal(folder, adapter=True), trainer, config, rows, more, **settings)
    assert not packed_rows
    model = causal(folder, adapter=True)
    lend(model)
    ours = run(tmp_path, model, trainer, config, rows, more, **settings)
    assert packed_rows
    assert min(packed_rows) > 0
    assert len(losses(ours)) == 2
    assert logged(ours, names) == pytest.approx(logged(plain, names), rel=1e-3, abs=1e-5)
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_full_tuning_under_trl(bf16: bool, folder: Path, tmp_path: Path, packed_rows: list[int]) -> None:
    """In mixed precision accelerate lays an autocast over TRL's forward, which lies over ours."""
    settings = {"per_device_train_batch_size": 3, "bf16": bf16}
    plain = run(tmp_path, causal(folder), SFTTrainer, SFTConfig, COMPLETED, **settings)
    model = causal(folder)
    lend(model)
    ours = run(tmp_path, model, SFTTrainer, SFTConfig, COMPLETED, **settings)
    assert min(packed_rows) > 0
    assert losses(ours) == pytest.approx(losses(plain), rel=2e-2 if bf16 else 1e-4)
    again = run(tmp_path, model, SFTTrainer, SFTConfig, COMPLETED, **settings)  # a second trainer over the same model
    assert losses(again)[0] < losses(ours)[0]
    assert len(packed_rows) == 4
    assert min(packed_rows) > 0


def test_reward_trainer(folder: Path, tmp_path: Path, packed_rows: list[int]) -> None:
    found = []
    rows = {"chosen": [p + w for p, w in zip(PROMPTS, WORDS, strict=True)], "rejected": PROMPTS}
    for is_lent in (False, True):
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = byte_tokenizer().pad_token_id
        if is_lent:
            lend(model)
        made = run(tmp_path, model, RewardTrainer, RewardConfig, rows, per_device_train_batch_size=3)
        found.append(logged(made, ("accuracy", "margin")))
    assert min(packed_rows) > 0
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_of_transformers(bf16: bool, folder: Path, tmp_path: Path, packed_rows: list[int]) -> None:
    """Two steps, then an evaluation whose metrics read logits."""
    from transformers import DataCollatorForLanguageModeling

    ids = [byte_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    seen: list[torch.Tensor] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(torch.as_tensor(prediction.predictions))
        return {}

    more = {
        "data_collator": DataCollatorForLanguageModeling(byte_tokenizer(), mlm=False),
        "eval_dataset": Dataset.from_dict({"input_ids": ids[:3]}),
        "compute_metrics": metrics,
    }
    found = []
    for is_lent in (False, True):
        model = causal(folder)
        if is_lent:
            lend(model)
        settings = {"per_device_train_batch_size": 3, "bf16": bf16}
        made = run(tmp_path, model, Trainer, TrainingArguments, {"input_ids": ids}, more, **settings)
        found.append([*losses(made), made.evaluate()["eval_loss"]])
    assert len(packed_rows) == 2
    assert min(packed_rows) > 0
    assert found[1] == pytest.approx(found[0], rel=2e-2 if bf16 else 1e-4)
    assert seen[0].shape == seen[1].shape
    if not bf16:
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-3)
