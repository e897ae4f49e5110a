"""TRL's SFTTrainer or DPOTrainer with a plain model against the same trainer with a lent one: speed, memory, losses.

python benchmarks/facade.py --rows FILE.json [--task sft|dpo] [--steps 4] [--rounds 2] [--dtypes float32 bfloat16]

Rows in the form of `benchmarks/sft.py` (alpaca; 8 a step) or `benchmarks/dpo.py` (ShareGPT pairs; 4 a step), in order,
cut at `--cutoff` tokens; LoRA rank 16 on all linear layers. Both sides run in fresh processes by turns, in this
environment, and differ in `lend` and in how the process keeps freed memory. Peak memory is counted above what the
imports take; `--recompute` leaves gradient checkpointing on, as TRL has it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import peer
import report
import turns

BATCHES = {"sft": 8, "dpo": 4}
SPEED_TARGET, MEMORY_TARGET, LOSS_TARGET = 2.0, 0.5, 1e-4
_SIDES = ("lent", "plain")


def main() -> None:
    options = _arguments()
    if options.side:
        print(json.dumps(_train(options)))
        return
    for dtype in options.dtypes:
        rounds: turns.Rounds = []
        for _ in range(options.rounds):
            lent, plain = (_run(options, side, dtype) for side in _SIDES)
            rounds.append((lent, plain))
        _report(options, dtype, rounds)


def _arguments() -> argparse.Namespace:
    parser = turns.parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--task", choices=list(BATCHES), default="sft")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--cutoff", type=int, default=1024)
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(options: argparse.Namespace, side: str, dtype: str) -> turns.Side:
    command = [sys.executable, __file__, "--side", side, "--dtypes", dtype]
    for name in ("rows", "task", "steps", "model", "cutoff"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--recompute"] * options.recompute
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return turns.Side(**json.loads(done.stdout.splitlines()[-1]))


def _train(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process and return what a `Side` holds."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.kernels.cpu import prepare_process
    from luthier.models.lent import lend
    from luthier.models.load import resolve

    torch.manual_seed(0)
    torch.set_num_threads(2)
    if options.side == "lent":
        prepare_process(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task, dtype = options.task, options.dtypes[0]
    trainer, config = {"sft": (trl.SFTTrainer, trl.SFTConfig), "dpo": (trl.DPOTrainer, trl.DPOConfig)}[task]
    more: dict[str, Any] = {"sft": {"learning_rate": 1e-4}, "dpo": {"learning_rate": 5e-6, "beta": 0.1}}[task]
    shared = argparse.Namespace(batch=BATCHES[task], steps=options.steps, dtype=dtype, cutoff=options.cutoff)
    settings = {**peer.common_settings(shared), **more, "gradient_checkpointing": options.recompute}
    base = str(resolve(options.model).base)
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)), adapter)
    if options.side == "lent":
        lend(model)
    clock = peer.Clock()
    peer.in_order(trainer)(
        model=model,
        args=config(**settings),
        train_dataset=Dataset.from_list(_rows(options)),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[clock],
    ).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": clock.seconds, "losses": clock.losses, "peak_bytes": (peak - before) * 1024}


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    import dpo
    import sft

    rows = json.loads(options.rows.read_text(encoding="utf-8"))[: 2 * options.steps * BATCHES[options.task]]
    form = {"sft": sft.peer_row, "dpo": dpo.peer_row}[options.task]
    return [dict(form(row)) for row in rows]


def _report(options: argparse.Namespace, dtype: str, rounds: turns.Rounds) -> None:
    batch = BATCHES[options.task]
    facts = {"processor": turns.processor_name(), "rows": batch * (options.steps - 1), "recompute": options.recompute}
    speeds = [[pair[i].rows_per_second(batch) for pair in rounds] for i in (0, 1)]
    peaks = [[pair[i].peak_gb() for pair in rounds] for i in (0, 1)]
    name = f"facade_{options.task}"
    print(report.line(f"{name}_rows_per_second_{dtype}", speeds[0], speeds[1], SPEED_TARGET, **facts))
    print(report.line(f"{name}_peak_gb_{dtype}", peaks[0], peaks[1], MEMORY_TARGET, **facts))
    print(turns.loss_line(f"{name}_loss_difference_{dtype}", rounds, LOSS_TARGET), flush=True)


if __name__ == "__main__":
    main()
