"""SFT samples per second, peak memory and losses of luthier and TRL's SFTTrainer, in turns on the same rows.

python benchmarks/sft.py --rows FILE.json [--steps 4] [--rounds 2] [--dtypes float32 bfloat16]

8 rows a step, cut at 1024 tokens; what both sides have in common stands in turns.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import report
import turns

if TYPE_CHECKING:
    from collections.abc import Mapping

SPEED_TARGETS = {"float32": 5.0, "bfloat16": 8.0}
MEMORY_TARGETS = {"float32": 0.35, "bfloat16": 0.25}
LOSS_TARGET = 0.01


def peer_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an alpaca row in TRL's form of a prompt and a completion."""
    question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


TASK = turns.Task(
    peer_script="trl_sft.py", batch=8, cutoff=1024, settings={"stage": "sft", "learning_rate": 1e-4}, peer_row=peer_row
)


def main() -> None:
    options = turns.arguments(__doc__, "JSON list of alpaca rows")
    facts = turns.facts(TASK, options)
    for dtype, rounds in turns.measure(TASK, options).items():
        sides = [[pair[index] for pair in rounds] for index in (0, 1)]
        speeds = [[side.rows_per_second(TASK.batch) for side in each] for each in sides]
        peaks = [[side.peak_gb() for side in each] for each in sides]
        print(report.line(f"sft_samples_per_second_{dtype}", speeds[0], speeds[1], SPEED_TARGETS[dtype], **facts))
        print(report.line(f"sft_peak_gb_{dtype}", peaks[0], peaks[1], MEMORY_TARGETS[dtype], **facts))
        print(turns.loss_line(f"sft_loss_difference_{dtype}", rounds, LOSS_TARGET), flush=True)


if __name__ == "__main__":
    main()
