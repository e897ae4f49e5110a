"""SFT samples per second, peak memory and losses of luthier and TRL's SFTTrainer, in turns on the same rows.

python benchmarks/sft.py --rows FILE.json [--steps 4] [--rounds 2] [--dtypes float32 bfloat16]

Both sides: the same model folder, the rows of FILE in order, 8 a step, cut at 1024 tokens, LoRA rank 16 and alpha 32
on all linear layers, constant learning rate 1e-4, no gradient checkpointing, fresh processes in turns. The first step
of a process warms it up and is left out of the seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import report

from luthier.core.log import logger, setup
from luthier.kernels.cpu import has_fast_bfloat16, processor_name
from luthier.models.load import resolve

HERE = Path(__file__).parent
BATCH, CUTOFF = 8, 1024
SPEED_TARGETS = {"float32": 3.5, "bfloat16": 5.0}
MEMORY_TARGET, LOSS_TARGET = 0.5, 0.01


@dataclass(frozen=True)
class Side:
    """What one process measured."""

    seconds: list[float]
    losses: list[float]
    peak_bytes: int

    def samples_per_second(self) -> float:
        counted = self.seconds[1:]
        return BATCH * len(counted) / sum(counted)

    def peak_gb(self) -> float:
        return self.peak_bytes / 1e9


def run_peer(python: Path, model: Path, rows: Path, dtype: str, steps: int) -> Side:
    """Train with TRL in its own environment."""
    command = [python, HERE / "trl_sft.py", "--model", model, "--rows", rows, "--dtype", dtype]
    command += ["--steps", steps, "--batch", BATCH, "--cutoff", CUTOFF]
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
    return Side(**json.loads(done.stdout.splitlines()[-1]))


def run_luthier(model: Path, rows: Path, dtype: str, steps: int) -> Side:
    """Train with `luthier train`, as a user would."""
    settings = {
        "model_name_or_path": model,
        "dtype": dtype,
        "dataset": rows,
        "cutoff_len": CUTOFF,
        "disable_shuffling": "true",
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_target": "all",
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "max_steps": steps,
        "save_strategy": "no",
        "plot_loss": "false",
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


def write_peer_rows(rows: Path, folder: Path) -> Path:
    """Write the rows in TRL's form of a prompt and a completion."""
    converted = [
        {
            "prompt": [{"role": "user", "content": "\n".join(filter(None, (row["instruction"], row.get("input"))))}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }
        for row in json.loads(rows.read_text(encoding="utf-8"))
    ]
    target = folder / "peer_rows.json"
    target.write_text(json.dumps(converted), encoding="utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON list of alpaca rows")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-python", type=Path, default=Path(".bench/bin/python"))
    fast = ["float32", "bfloat16"] if has_fast_bfloat16() else ["float32"]
    parser.add_argument("--dtypes", nargs="+", default=fast, choices=["float32", "bfloat16"])
    options = parser.parse_args()
    setup()
    model = Path(resolve(options.model).base)
    facts = {"processor": processor_name(), "rows": BATCH * (options.steps - 1)}
    with tempfile.TemporaryDirectory() as folder:
        peer_rows = write_peer_rows(options.rows, Path(folder))
        for dtype in options.dtypes:
            pairs: list[tuple[Side, Side]] = []
            for number in range(options.rounds):
                logger.info("%s, round %d of %d", dtype, number + 1, options.rounds)
                ours = run_luthier(model, options.rows.resolve(), dtype, options.steps)
                pairs.append((ours, run_peer(options.peer_python, model, peer_rows, dtype, options.steps)))
            print_measures(dtype, pairs, facts)


def print_measures(dtype: str, pairs: list[tuple[Side, Side]], facts: dict[str, object]) -> None:
    """Print speed, memory and loss, a line each."""
    ours, theirs = [[pair[i] for pair in pairs] for i in (0, 1)]
    measures = {
        f"sft_samples_per_second_{dtype}": (Side.samples_per_second, SPEED_TARGETS[dtype]),
        f"sft_peak_gb_{dtype}": (Side.peak_gb, MEMORY_TARGET),
    }
    for measure, (value, target) in measures.items():
        print(report.line(measure, [*map(value, ours)], [*map(value, theirs)], target, **facts), flush=True)
    differences = [abs(a / b - 1) for a, b in zip(ours[0].losses, theirs[0].losses, strict=True)]
    line = {"measure": f"sft_loss_difference_{dtype}", "luthier": ours[0].losses, "peer": theirs[0].losses}
    print(
        json.dumps({**line, "ratio": round(max(differences), 5), "target": LOSS_TARGET, "spread": [0, 0]}), flush=True
    )


if __name__ == "__main__":
    main()
