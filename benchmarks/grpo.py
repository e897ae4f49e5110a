"""Seconds and peak memory of a GRPO step of luthier and TRL's GRPOTrainer, in turns, and of a PPO step beside it.

python benchmarks/grpo.py --rows FILE.json [--steps 4] [--rounds 2] [--dtypes float32 bfloat16]

A step answers 2 prompts 8 times with up to 64 tokens and makes one update of LoRA; no reference. The prompts are those
of alpaca rows that ask for long answers, so that nearly every answer has 64 tokens on both sides; seconds are compared
for equal numbers of tokens. Each side's best dtype counts. What both sides have in common stands in turns.py.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import report
import turns

from luthier.models.load import resolve

if TYPE_CHECKING:
    import argparse

SPEED_TARGET, MEMORY_TARGET, PPO_TARGET = 4.0, 0.4, 1.5
TOPICS = ("the sea", "a violin", "winter", "a city", "trains", "bread", "the moon", "a garden")
SETTINGS = {
    "stage": "grpo",
    "learning_rate": 1e-5,
    "num_generations": 8,
    "max_completion_length": 64,
    "rollout_minibatches": 1,
    "rollout_epochs": 1,
    "max_flat_steps": 1000,
    "objective.kl_coef": 0,
}


def rows() -> list[dict[str, Any]]:
    """Return prompts that ask for long answers."""
    ask = "Write a long and detailed story about {}, with many characters. Describe each of them."
    return [{"prompt": [{"role": "user", "content": ask.format(topic)}]} for topic in TOPICS]


def task(folder: Path) -> turns.Task:
    """Return the task; both sides grade by the share of letters that differ."""
    grader = folder / "grader.py"
    grader.write_text("def distinct_letters(text, example):\n    return len(set(text)) / max(1, len(text))\n")
    settings = {**SETTINGS, "rewards": json.dumps([f"{grader}:distinct_letters"])}
    return turns.Task(peer_script="trl_grpo.py", batch=16, cutoff=512, settings=settings, peer_row=dict)


def main() -> None:
    parser = turns.parser(__doc__)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.rows = folder / "rows.json"
        options.rows.write_text(json.dumps(rows()))
        both = task(folder)
        compare(both, options)
        ppo(both, options)


def compare(both: turns.Task, options: argparse.Namespace) -> None:
    """Print the ratios of speed and of memory: in float32, and best dtype against best."""
    measured = turns.measure(both, options)
    for dtypes in {("float32",), tuple(measured)}:
        there = [dtype for dtype in dtypes if measured.get(dtype)]
        fastest = [min(there, key=lambda dtype, i=i: median(s(pair[i]) for pair in measured[dtype])) for i in (0, 1)]
        ours, theirs = ([pair[i] for pair in measured[dtype]] for i, dtype in enumerate(fastest))
        facts = {**turns.facts(both, options), "luthier_dtype": fastest[0], "peer_dtype": fastest[1]}
        speed = [[1 / s(side) for side in sides] for sides in (ours, theirs)]
        print(report.line("grpo_steps_per_second", speed[0], speed[1], SPEED_TARGET, **facts), flush=True)
        peaks = [[side.peak_gb() for side in sides] for sides in (ours, theirs)]
        print(report.line("grpo_peak_gb", peaks[0], peaks[1], MEMORY_TARGET, **facts), flush=True)


def s(side: turns.Side) -> float:
    """Return the median seconds of a step; the first one warms up."""
    return median(side.seconds[1:])


def ppo(both: turns.Task, options: argparse.Namespace) -> None:
    """Print how much longer a PPO step takes than a GRPO step with as many answers of equal length."""
    model = Path(resolve(options.model).base)
    kinds = {
        value: {"stage": "ppo", "objective.kl_coef": 0.05, "value_model": value} for value in ("shared", "separate")
    }
    kinds["grpo"] = {"stage": "grpo"}
    for dtype in options.dtypes:
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(options.rounds):
            for name, more in kinds.items():
                task = replace(both, settings={**both.settings, **more})
                seconds[name].append(s(turns.run_luthier(task, model, options.rows, dtype, options.steps)))
        facts = {**turns.facts(both, options), "dtype": dtype}
        for name in ("shared", "separate"):
            measure = f"ppo_{name}_seconds_over_grpo_seconds"
            print(report.line(measure, seconds[name], seconds["grpo"], PPO_TARGET, **facts), flush=True)


if __name__ == "__main__":
    main()
