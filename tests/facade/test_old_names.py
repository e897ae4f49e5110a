"""Old names of TRL and transformers: translated, said once, undone."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import byte_tokenizer, make_folder
from transformers import AutoModelForCausalLM

from luthier.core import log
from luthier.facade import old_values
from luthier.facade.old_names import activate, deactivate
from luthier.facade.old_table import ARGUMENTS, CLASSES, CONFIG_OF, CONFIGS, MOVED, TRAINER_ARGUMENTS, To

pytest.importorskip("trl")
TEXTS = {"text": [f"text {i} " + "abc " * i for i in range(6)]}


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch):
    """What was said, with every old name translated."""
    lines: list[str] = []
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(log.logger, "info", lambda message, *args: lines.append(message % args if args else message))
    activate()
    yield lines
    deactivate()


@pytest.fixture
def model(tmp_path) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_folder("llama", tmp_path / "model"))


def config_of(name: str, tmp_path, **arguments: Any) -> Any:
    import trl

    return getattr(trl, name)(output_dir=str(tmp_path / "out"), **arguments)


def test_every_entry_leads_to_an_argument_of_today() -> None:
    from dataclasses import fields
    from importlib import import_module

    for module, name in {*CONFIG_OF.values()}:
        known = {field.name for field in fields(getattr(import_module(module), name))}
        for old, entry in {**ARGUMENTS, **CONFIGS[name]}.items():
            if isinstance(entry, To):
                assert entry.name in known, f"{name}: {old} -> {entry.name}"
    for module, name in CLASSES.items():
        assert hasattr(import_module(module), name)
    for name, module in MOVED.items():
        assert hasattr(import_module(module), name)
    assert not set(TRAINER_ARGUMENTS) & {"model", "args"}


def test_arguments_of_settings(tmp_path, said: list[str]) -> None:
    args = config_of(
        "SFTConfig", tmp_path, warmup_ratio=0.1, evaluation_strategy="steps", max_seq_length=64, group_by_length=True,
        logging_dir="logs", overwrite_output_dir=True, eval_steps=3,
    )  # fmt: skip
    assert (args.warmup_steps, args.eval_strategy.value, args.max_length, args.max_seq_length) == (0.1, "steps", 64, 64)
    assert args.train_sampling_strategy == "group_by_length"
    assert sum("warmup_ratio is now warmup_steps" in line for line in said) == 1
    before = len(said)
    config_of("SFTConfig", tmp_path, warmup_ratio=0.1, max_seq_length=64)
    assert not [line for line in said[before:] if "is now" in line]


def test_today_s_name_wins_over_the_old_one(tmp_path) -> None:
    args = config_of("SFTConfig", tmp_path, warmup_ratio=0.1, warmup_steps=5)
    assert args.warmup_steps == 5
    assert config_of("SFTConfig", tmp_path, warmup_ratio=0.1, warmup_steps=0).warmup_steps == 0.1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
def test_precision_without_a_gpu(tmp_path) -> None:
    from transformers import TrainingArguments

    silent = config_of("SFTConfig", tmp_path)
    assert (silent.bf16, silent.use_cpu) == (False, True)
    assert config_of("SFTConfig", tmp_path, bf16=True).bf16
    half = TrainingArguments(str(tmp_path), fp16=True, bf16=False)
    assert (half.fp16, half.use_cpu) == (False, True)


def test_optimizer_trackers_and_vllm_that_are_not_here(tmp_path, said: list[str], monkeypatch) -> None:
    monkeypatch.setattr(old_values, "is_there", lambda package: package == "tensorboard")
    args = config_of(
        "GRPOConfig", tmp_path, optim="paged_adamw_8bit", report_to=["wandb", "tensorboard"], use_vllm=True
    )
    assert (args.optim, args.report_to, args.use_vllm) == ("adamw_torch", ["tensorboard"], False)
    assert sum("pip install wandb" in line for line in said) == 1
    monkeypatch.setattr(old_values, "is_there", lambda package: True)
    assert config_of("SFTConfig", tmp_path, optim="adamw_8bit").optim == "adamw_8bit"


def test_answers_of_a_step_make_whole_groups(tmp_path, said: list[str]) -> None:
    raised = config_of("GRPOConfig", tmp_path, per_device_train_batch_size=1, num_generations=8)
    assert raised.per_device_train_batch_size == 8
    fits = config_of(
        "GRPOConfig", tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, num_generations=4
    )
    assert fits.per_device_train_batch_size == 1
    assert sum("raised to 8" in line for line in said) == 1


@pytest.mark.parametrize("kind", [dict, SimpleNamespace])
def test_sampling_parameters_of_vllm(tmp_path, kind: Any) -> None:
    params = kind(temperature=0.7, top_p=0.9, top_k=-1, min_p=0.1, seed=3407, stop=["x"], max_tokens=16)
    args = config_of("GRPOConfig", tmp_path, vllm_sampling_params=params, top_p=0.5)
    assert (args.temperature, args.top_p, args.top_k, args.min_p) == (0.7, 0.5, 0, 0.1)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("SFTConfig", {"max_seq_lenght": 3}, "did you mean 'max_seq_length'"),
        ("DPOConfig", {"reference_free": True}, "no objective without a reference"),
        ("DPOConfig", {"bata": 0.1}, "did you mean 'beta'"),
    ],
)
def test_what_nobody_knows_is_refused_by_name(tmp_path, name: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        config_of(name, tmp_path, **arguments)


def test_names_that_moved_and_names_that_are_gone() -> None:
    from trl import ORPOConfig, ORPOTrainer
    from trl.experimental import orpo

    assert (ORPOConfig, ORPOTrainer) == (orpo.ORPOConfig, orpo.ORPOTrainer)
    with pytest.raises(ImportError, match="stage: ppo"):
        from trl import PPOTrainer  # noqa: F401  # pyright: ignore
    with pytest.raises(ImportError):
        from trl import NoSuchTrainer  # noqa: F401  # pyright: ignore


def test_undone_nothing_is_translated(tmp_path) -> None:
    from trl import SFTConfig, SFTTrainer

    activate()
    deactivate()
    for refused in ({"max_seq_length": 3}, {"warmup_ratio": 0.1}):
        with pytest.raises(TypeError):
            SFTConfig(output_dir=str(tmp_path), use_cpu=True, **refused)
    with pytest.raises(TypeError):
        SFTTrainer(model=None, tokenizer=None)  # pyright: ignore
    with pytest.raises(ImportError):
        from trl import ORPOTrainer  # noqa: F401  # pyright: ignore


@pytest.mark.slow
def test_classes_that_are_imported_later_are_translated_too() -> None:
    code = """
from luthier.facade.old_names import activate
activate()
from trl import SFTConfig
assert SFTConfig(output_dir="x", max_seq_length=9).max_length == 9
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arguments_of_a_trainer_go_into_its_settings(tmp_path, model: Any, said: list[str]) -> None:
    from transformers import TrainingArguments
    from trl import SFTConfig, SFTTrainer

    plain = TrainingArguments(str(tmp_path), per_device_train_batch_size=3, warmup_ratio=0.5, learning_rate=1e-3)
    trainer = SFTTrainer(
        model=model, tokenizer=byte_tokenizer(), train_dataset=Dataset.from_dict(TEXTS), dataset_text_field="text",
        max_seq_length=20, packing=False, dataset_num_proc=1, args=plain,
    )  # fmt: skip
    assert isinstance(trainer.args, SFTConfig)
    assert (trainer.args.max_length, trainer.args.per_device_train_batch_size, trainer.args.warmup_steps) == (
        20,
        3,
        0.5,
    )
    assert max(len(row) for row in trainer.train_dataset["input_ids"]) == 20
    assert any("tokenizer is now processing_class" in line for line in said)
    with pytest.raises(TypeError, match="did you mean 'tokenizer'"):
        SFTTrainer(model=model, tokeniser=byte_tokenizer(), train_dataset=Dataset.from_dict(TEXTS))


def test_the_length_of_the_model_holds_where_the_settings_name_none(tmp_path, model: Any) -> None:
    from trl import SFTTrainer

    model.max_seq_length = 24
    rows = Dataset.from_dict({"text": ["a long text of many bytes " * 4]})
    for asked, expected in (({}, 24), ({"max_length": 12}, 12), ({"max_seq_length": 4096}, 24)):
        args = config_of("SFTConfig", tmp_path, **asked)
        trainer = SFTTrainer(model=model, tokenizer=byte_tokenizer(), train_dataset=rows, args=args)
        assert len(trainer.train_dataset[0]["input_ids"]) == expected == trainer.args.max_length


@pytest.mark.parametrize("several", [True, False])
def test_a_function_that_formats_rows(tmp_path, model: Any, several: bool) -> None:
    from trl import SFTTrainer

    rows = Dataset.from_dict({"q": ["one", "two"], "a": ["1", "2"]})
    functions = {
        True: lambda rows: [f"{q} is {a}" for q, a in zip(rows["q"], rows["a"], strict=True)],
        False: lambda row: f"{row['q']} is {row['a']}",
    }
    trainer = SFTTrainer(
        model=model, tokenizer=byte_tokenizer(), train_dataset=rows, formatting_func=functions[several],
        args=config_of("SFTConfig", tmp_path),
    )  # fmt: skip
    texts = [byte_tokenizer().decode(ids, skip_special_tokens=True) for ids in trainer.train_dataset["input_ids"]]
    assert texts == ["one is 1", "two is 2"]


def test_a_text_that_begins_with_its_token_gets_no_second_one(tmp_path, model: Any) -> None:
    from tokenizers.processors import TemplateProcessing
    from trl import SFTTrainer

    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    rows = Dataset.from_dict({"text": ["<|im_start|>user", "<|im_start|>other"]})
    trainer = SFTTrainer(
        model=model, tokenizer=tokenizer, train_dataset=rows, args=config_of("SFTConfig", tmp_path)
    )  # fmt: skip
    assert [ids.count(tokenizer.bos_token_id) for ids in trainer.train_dataset["input_ids"]] == [1, 1]


def test_a_plain_trainer_takes_a_tokenizer(tmp_path, model: Any) -> None:
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path)), tokenizer=byte_tokenizer())
    assert trainer.processing_class is not None


def test_other_versions_of_trl(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    from luthier.core.errors import DependencyError
    from luthier.facade import old_arguments, old_names

    deactivate()
    monkeypatch.setattr(old_names, "version", lambda _: "1.99.0")
    activate()
    assert any(line.startswith("trl 1.99.0: ") and "1.16" in line for line in said)
    monkeypatch.setattr(old_arguments, "version", lambda _: "0.9.0")
    with pytest.raises(DependencyError, match=r"trl 0\.9\.0 has neither tokenizer nor processing_class.*pip install"):
        old_arguments.translate("SFTTrainer", {"tokenizer": None}, ["model", "args"], TRAINER_ARGUMENTS)
