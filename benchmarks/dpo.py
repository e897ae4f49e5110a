"""DPO pairs per second, peak memory and losses of luthier and TRL's DPOTrainer, in turns on the same rows.

python benchmarks/dpo.py --rows FILE.json [--steps 4] [--rounds 2] [--dtypes float32 bfloat16]

4 pairs a step, cut at 1024 tokens; both sides leave out the rows whose prompt alone is longer, and score the reference,
their adapter off, in every step. Each side's best dtype counts; in float32 the peer needs about 25 GB. What both sides
have in common stands in turns.py.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import report
import turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SPEED_TARGET, MEMORY_TARGET, LOSS_TARGET = 8.0, 0.5, 0.01
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def peer_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a ShareGPT row in TRL's explicit form."""

    def message(turn: Mapping[str, str]) -> dict[str, str]:
        return {"role": ROLES[turn["from"]], "content": turn["value"]}

    prompt = [message(turn) for turn in row["conversations"]]
    return {"prompt": prompt, "chosen": [message(row["chosen"])], "rejected": [message(row["rejected"])]}


TASK = turns.Task(
    peer_script="trl_dpo.py",
    batch=4,
    cutoff=1024,
    settings={"stage": "dpo", "learning_rate": 5e-6, "bad_rows": "skip", "precompute_reference": "false"},
    peer_row=peer_row,
)


def best(
    measured: Mapping[str, turns.Rounds], index: int, speed: Callable[[turns.Side], float]
) -> tuple[str, list[turns.Side]]:
    """Return the dtype in which one side is fastest, and its rounds."""
    sides = {dtype: [pair[index] for pair in rounds] for dtype, rounds in measured.items()}
    dtype = max(sides, key=lambda name: median(map(speed, sides[name])))
    return dtype, sides[dtype]


def main() -> None:
    options = turns.arguments(__doc__, "JSON list of ShareGPT rows with chosen and rejected")
    measured = turns.measure(TASK, options)

    def speed(side: turns.Side) -> float:
        return side.rows_per_second(TASK.batch)

    (our_dtype, ours), (their_dtype, theirs) = (best(measured, index, speed) for index in (0, 1))
    facts = {**turns.facts(TASK, options), "luthier_dtype": our_dtype, "peer_dtype": their_dtype}
    print(report.line("dpo_pairs_per_second", [*map(speed, ours)], [*map(speed, theirs)], SPEED_TARGET, **facts))
    peaks = [[side.peak_gb() for side in sides] for sides in (ours, theirs)]
    print(report.line("dpo_peak_gb", peaks[0], peaks[1], MEMORY_TARGET, **facts))
    losses(options)


def losses(options: argparse.Namespace) -> None:
    """Print the losses of single pairs in float32: in bfloat16 the first steps are rounding on both sides."""
    alone = argparse.Namespace(**{**vars(options), "dtypes": ["float32"], "rounds": 1})
    for dtype, rounds in turns.measure(replace(TASK, batch=1), alone).items():
        print(turns.loss_line(f"dpo_loss_difference_{dtype}", rounds, LOSS_TARGET))


if __name__ == "__main__":
    main()
