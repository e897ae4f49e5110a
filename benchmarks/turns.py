"""Both sides of a training benchmark: fresh processes in turns, and what each one measured.

Both sides take the same model folder, the rows of a file in order, LoRA rank 16 and alpha 32 on all linear layers, a
constant learning rate and no gradient checkpointing. The first step of a process warms it up and is left out of the
seconds.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.log import logger, setup
from luthier.kernels.cpu import has_fast_bfloat16, processor_name
from luthier.models.load import resolve

HERE = Path(__file__).parent
RowWriter = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is measured."""

    peer_script: str
    """File beside this one that trains with the peer."""
    batch: int
    """Rows of a step."""
    cutoff: int
    """Most tokens of a sequence."""
    settings: Mapping[str, Any]
    """Settings of luthier besides the common ones."""
    peer_row: RowWriter
    """Row of the file -> row as the peer wants it."""


@dataclass(frozen=True)
class Side:
    """What one process measured."""

    seconds: list[float]
    losses: list[float]
    peak_bytes: int

    def rows_per_second(self, batch: int) -> float:
        counted = self.seconds[1:]
        return batch * len(counted) / sum(counted)

    def peak_gb(self) -> float:
        return self.peak_bytes / 1e9


Rounds = list[tuple[Side, Side]]
"""(luthier, peer) of each round."""


def arguments(description: str | None, rows: str) -> argparse.Namespace:
    """Read the command line that training benchmarks share; `rows` says what the file holds."""
    shared = parser(description)
    shared.add_argument("--rows", type=Path, required=True, help=rows)
    return shared.parse_args()


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of every training benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-python", type=Path, default=Path(".bench/bin/python"))
    fast = ["float32", "bfloat16"] if has_fast_bfloat16() else ["float32"]
    parser.add_argument("--dtypes", nargs="+", default=fast, choices=["float32", "bfloat16"])
    return parser


def measure(task: Task, options: argparse.Namespace) -> dict[str, Rounds]:
    """Return the rounds of each dtype; one in which a side runs out of memory is left out, and that is said."""
    setup()
    model = Path(resolve(options.model).base)
    found: dict[str, Rounds] = {dtype: [] for dtype in options.dtypes}
    with tempfile.TemporaryDirectory() as folder:
        peer_rows = Path(folder, "peer_rows.json")
        rows = json.loads(options.rows.read_text(encoding="utf-8"))
        peer_rows.write_text(json.dumps([task.peer_row(row) for row in rows]), encoding="utf-8")
        for number in range(options.rounds):
            for dtype in list(found):
                logger.info("round %d of %d, %s", number + 1, options.rounds, dtype)
                try:
                    ours = run_luthier(task, model, options.rows.resolve(), dtype, options.steps)
                    theirs = run_peer(task, options.peer_python, model, peer_rows, dtype, options.steps)
                except subprocess.CalledProcessError as error:
                    if error.returncode != -signal.SIGKILL:
                        raise
                    logger.warning("%s is left out: %s was killed, out of memory?", dtype, Path(error.cmd[1]).name)
                    del found[dtype]
                else:
                    found[dtype].append((ours, theirs))
    return found


def run_peer(task: Task, python: Path, model: Path, rows: Path, dtype: str, steps: int) -> Side:
    """Train with the peer in its own environment."""
    command = [python, HERE / task.peer_script, "--model", model, "--rows", rows, "--dtype", dtype]
    command += ["--steps", steps, "--batch", task.batch, "--cutoff", task.cutoff]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return Side(**json.loads(done.stdout.splitlines()[-1]))


def run_luthier(task: Task, model: Path, rows: Path, dtype: str, steps: int) -> Side:
    """Train with `luthier train`, as a user would."""
    settings = {
        "model_name_or_path": model,
        "dtype": dtype,
        "dataset": rows,
        "cutoff_len": task.cutoff,
        "disable_shuffling": "true",
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_target": "all",
        "per_device_train_batch_size": task.batch,
        "lr_scheduler_type": "constant",
        "max_steps": steps,
        "save_strategy": "no",
        "plot_loss": "false",
        **task.settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bench.yaml")
        file.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        command = [sys.executable, "-m", "luthier", "train", str(file), f"output_dir={folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        events = [json.loads(line) for line in Path(folder, "run/events.jsonl").read_text().splitlines()]
    steps_done = [event for event in events if event["kind"] == "train"]
    return Side(
        [event["seconds"] for event in steps_done],
        [event["loss"] for event in steps_done],
        max(event["peak_memory_bytes"] for event in steps_done),
    )


def facts(task: Task, options: argparse.Namespace) -> dict[str, object]:
    """Return what stands beside every figure."""
    return {"processor": processor_name(), "rows": task.batch * (options.steps - 1)}


def loss_line(measure: str, rounds: Rounds, target: float) -> str:
    """Return the losses of the first round beside each other; `ratio` is the largest relative difference."""
    ours, theirs = rounds[0][0].losses, rounds[0][1].losses
    largest = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    line = {"measure": measure, "luthier": ours, "peer": theirs, "ratio": round(largest, 5), "target": target}
    return json.dumps({**line, "spread": [0, 0]})
