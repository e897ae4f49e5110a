"""The commented YAML that `luthier init` writes, its comments taken from the declarations."""

from __future__ import annotations

from luthier.config.load import adapter
from luthier.config.schema import SECTIONS

FIRST_SETTINGS = (
    ("# What to train, and how\n", {"model_name_or_path": "smollm2-135m", "stage": "sft", "finetuning_type": "lora",
     "lora_rank": 16, "lora_target": "all"}),
    ("# Rows\n", {"dataset": "data/train.jsonl", "cutoff_len": 1024, "val_size": 0.05, "bad_rows": "fail"}),
    ("# The loop\n", {"output_dir": "runs/first", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
     "learning_rate": "2e-4", "num_train_epochs": 3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05,
     "save_steps": 100, "eval_steps": 100, "seed": 42}),
    ("# Answers, for chat and evaluation\n", {"max_new_tokens": 256, "temperature": 0}),
)  # fmt: skip
_HELP = {
    "stage": "sft learns answers, pt plain text, dpo prefers one answer to another.",
    "finetuning_type": "lora, qlora, full, freeze and others: see docs/tuning.md.",
    "lora_rank": "Rank of the low-rank addition; more learns more and takes more memory.",
    "lora_target": "Linear layers by name; all takes every one in the decoder but the head.",
}


def commented_yaml() -> str:
    """Return a YAML that trains once `dataset` names a file."""
    helps = dict(_HELP)
    for cls in SECTIONS.values():
        helps |= {key: facts.get("description", "") for key, facts in adapter(cls).json_schema()["properties"].items()}
    blocks = [
        heading + "".join(f"# {helps[key]}\n{key}: {value}\n" for key, value in settings.items())
        for heading, settings in FIRST_SETTINGS
    ]
    return (
        "# `luthier validate FILE` checks this file, `luthier data preview FILE` shows what is learned.\n\n"
        + "\n".join(blocks)
    )
