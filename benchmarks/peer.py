"""What the peer sides of the training benchmarks share; runs in the peers' own environment."""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """Notes the seconds of every optimizer step; the clock of the trainer itself includes start-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def in_order(trainer: type[Any]) -> type[Any]:
    """Return a trainer without shuffling, so that both sides see the same batches."""

    class InOrder(trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    return InOrder


def arguments() -> argparse.Namespace:
    """Read what turns.py hands over, and prepare torch."""
    parser = argparse.ArgumentParser()
    for name in ("--model", "--rows", "--dtype"):
        parser.add_argument(name, required=True)
    for name in ("--steps", "--batch", "--cutoff"):
        parser.add_argument(name, type=int, required=True)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    return parser.parse_args()


def common_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a TRL config that all benchmarks set alike."""
    return {
        "output_dir": "/tmp/luthier-bench-trl",
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": options.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "max_length": options.cutoff,
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
    }


def train(trainer: type[Any], config: Any, options: argparse.Namespace, **more: Any) -> None:
    """Train LoRA with a class of TRL and print seconds, losses and peak memory as one JSON object.

    `more`: arguments that only this class takes.
    """
    with open(options.rows) as file:
        rows = json.load(file)
    clock = Clock()
    in_order(trainer)(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
        **more,
    ).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": clock.seconds, "losses": clock.losses, "peak_bytes": peak}))
