"""Files of other tools: told apart by the keys that only those have, and answered with the nearest keys of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.core.log import printable


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another tool's keys."""

    name: str
    sure: frozenset[str]
    """Keys of which a single one tells the tool."""
    nearest: Mapping[str, str]
    """Key there -> what to write here; empty where nothing is needed."""


AXOLOTL = Neighbour(
    "Axolotl",
    frozenset({"base_model", "micro_batch_size", "sequence_len", "datasets", "sample_packing"}),
    {
        "base_model": "model_name_or_path",
        "base_model_config": "",
        "tokenizer_config": "",
        "model_type": "",
        "tokenizer_type": "",
        "datasets": "dataset (a name in dataset_info.json, or the file of `path`) and formatting",
        "test_datasets": "eval_dataset",
        "val_set_size": "val_size",
        "dataset_prepared_path": "",
        "chat_template": "template",
        "sequence_len": "cutoff_len",
        "sample_packing": "packing",
        "eval_sample_packing": "",
        "pad_to_sequence_len": "",
        "adapter": "finetuning_type (lora, qlora, full)",
        "lora_model_dir": "adapter_name_or_path",
        "lora_r": "lora_rank",
        "lora_target_modules": "lora_target",
        "lora_target_linear": "lora_target: all",
        "lora_modules_to_save": "additional_target",
        "peft_use_dora": "use_dora",
        "peft_use_rslora": "use_rslora",
        "rl": "stage (dpo, kto, orpo, simpo, grpo)",
        "micro_batch_size": "per_device_train_batch_size",
        "eval_batch_size": "per_device_eval_batch_size",
        "num_epochs": "num_train_epochs",
        "optimizer": "optim",
        "lr_scheduler": "lr_scheduler_type",
        "evals_per_epoch": "eval_strategy: steps and eval_steps",
        "saves_per_epoch": "save_steps",
        "early_stopping_patience": "early_stopping_steps",
        "flash_attention": "",
        "tf32": "",
        "strict": "",
        "special_tokens": "",
        "train_on_inputs": "train_on_prompt",
        "roles_to_train": "mask_history or train_on_prompt",
        "wandb_project": "report_to: wandb",
        "wandb_entity": "",
        "wandb_watch": "",
        "wandb_name": "run_name",
        "wandb_log_model": "",
        "hub_model_id": "",
    },
)
TRL = Neighbour(
    "TRL",
    frozenset({"dataset_name", "use_peft", "max_prompt_length", "dataset_train_split", "assistant_only_loss"}),
    {
        "dataset_name": "dataset (a file, or a name in dataset_info.json; an entry there may name a hub data set)",
        "dataset_config": "`subset` in dataset_info.json",
        "dataset_train_split": "`split` in dataset_info.json",
        "dataset_test_split": "eval_dataset",
        "dataset_text_field": "columns",
        "dataset_num_proc": "",
        "datasets": "dataset",
        "max_length": "cutoff_len",
        "max_seq_length": "cutoff_len",
        "max_prompt_length": "cutoff_len",
        "eos_token": "",
        "chat_template_path": "template",
        "assistant_only_loss": "",
        "completion_only_loss": "",
        "use_peft": "finetuning_type: lora",
        "lora_r": "lora_rank",
        "lora_target_modules": "lora_target",
        "lora_modules_to_save": "additional_target",
        "lora_task_type": "",
        "use_dora": "use_dora",
        "torch_dtype": "dtype",
        "attn_implementation": "",
        "use_vllm": "engine: vllm",
        "vllm_mode": "engine: vllm",
        "reward_model_path": "reward_model",
        "reward_funcs": "rewards",
        "loss_type": "pref_loss for stage: dpo, or stage itself",
        "padding_free": "",
    },
)
UNSLOTH = Neighbour(
    "Unsloth",
    frozenset({"max_seq_length", "random_state", "use_loftq", "save_method", "finetune_language_layers"}),
    {
        "model": "model_name_or_path",
        "model_name": "model_name_or_path",
        "training_type": "finetuning_type and stage",
        "max_seq_length": "cutoff_len",
        "r": "lora_rank",
        "lora_r": "lora_rank",
        "target_modules": "lora_target",
        "bias": "",
        "use_gradient_checkpointing": "gradient_checkpointing",
        "random_state": "seed",
        "use_loftq": "init: loftq under tuning",
        "loftq_config": "init: loftq under tuning",
        "batch_size": "per_device_train_batch_size",
        "num_epochs": "num_train_epochs",
        "train_on_completions": "",
        "save_model": "",
        "save_method": "`luthier export`",
        "save_path": "output_dir",
        "push_model": "",
        "hub_path": "",
        "hub_token": "",
    },
)
NEIGHBOURS = (AXOLOTL, TRL, UNSLOTH)


def recognize(values: Mapping[str, Any], is_known: Callable[[str], bool]) -> str | None:
    """Return what to say about settings that another tool wrote; None where they are not.

    `is_known`: tells a key that this package reads.

    >>> recognize({"base_model": "m", "seed": 1}, lambda key: key == "seed")
    'these are settings of Axolotl. Write here: base_model: m -> model_name_or_path. Other keys stay as they are'
    """
    foreign = [key for key in values if not is_known(key)]
    sure = [each for each in NEIGHBOURS if each.sure & set(foreign)]
    if not sure:
        return None
    found = max(sure, key=lambda each: sum(key in each.nearest for key in foreign))
    pairs = [f"{key}{_shown(values[key])} -> {found.nearest[key]}" for key in foreign if found.nearest.get(key)]
    needless = [key for key in foreign if found.nearest.get(key) == ""]
    others = [printable(key) for key in foreign if key not in found.nearest]
    text = f"these are settings of {found.name}. Write here: {'; '.join(pairs)}"
    text += f". Not needed here: {', '.join(needless)}" if needless else ""
    text += f". Without a counterpart: {', '.join(others)}" if others else ""
    return f"{text}. Other keys stay as they are"


def hint(key: str) -> str:
    """Return what to write instead of a key that another tool has, or an empty text.

    >>> hint("max_seq_length")
    '; it is cutoff_len here'
    """
    found = [each for each in reversed(NEIGHBOURS) if each.nearest.get(key)]
    return f"; it is {found[0].nearest[key]} here" if found else ""


def _shown(value: Any) -> str:
    """Return a value that fits a line."""
    return f": {printable(value, 40)[1:-1]}" if isinstance(value, (str, int, float)) else ""
