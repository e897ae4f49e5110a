"""Quantized bases: products against bitsandbytes, memory while loading, bytes of a base, and the loss of an adapter.

python benchmarks/quantized.py --rows FILE.json [--rounds 5] [--steps 100] [--model smollm2-135m] [--only PART,PART]

Parts: products (forward and backward of one frozen layer, both sides by turns on one thread), loading (peak memory of a
child process that quantizes a random model of 1 GB in four files), bytes (of the base), loss (an adapter on the
quantized base against one on the base as it is: same rows, same order, same start).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import report
import torch
from torch import nn

import luthier
from luthier.config.schema import ModelConfig
from luthier.core.log import setup
from luthier.kernels.cpu import has_fast_bfloat16, prepare_process, processor_name
from luthier.models.device import Placement, place
from luthier.models.load import load_model, resolve
from luthier.models.quantized import QuantizedLinear, quantized_size
from luthier.models.quantized_load import Choice, bitsandbytes_layer, bitsandbytes_obstacle
from luthier.runs.store import read_events

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ((576, 1536), (2048, 8192))
ROWS = (1, 64, 1024)
SHARD_BYTES = 300_000_000
ROUND_SECONDS = 0.1
LAST = 20
"""Steps whose mean loss is compared."""


def seconds(call: Callable[[Any], Any], x: Any, times: int) -> float:
    """Return the time of forward and backward, the mean of some."""
    began = time.perf_counter()
    for _ in range(times):
        call(x).sum().backward()
        x.grad = None
    return (time.perf_counter() - began) / times


def products(args: argparse.Namespace) -> None:
    """Compare layers of both sides."""
    if (reason := bitsandbytes_obstacle("cpu")) is not None:
        print(json.dumps({"measure": "frozen_layer", "left_out": reason}))
        return
    for dtype in (torch.float32, torch.bfloat16) if has_fast_bfloat16() else (torch.float32,):
        where = Placement(torch.device("cpu"), dtype, None, "")
        for kind in ("nf4", "int8"):
            for inputs, outputs in SIZES:
                dense = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
                ours = QuantizedLinear.of(dense, kind, double=True, dtype=dtype)
                theirs = bitsandbytes_layer(dense, Choice(kind, True, "bitsandbytes", ""), where)
                for rows in ROWS:
                    x = torch.randn(rows, inputs).to(dtype).requires_grad_()
                    seconds(theirs, x, 1)  # both compile or pack something at the first call
                    times = max(1, int(ROUND_SECONDS / max(seconds(ours, x, 1), seconds(ours, x, 1))))
                    both = [(seconds(ours, x, times), seconds(theirs, x, times)) for _ in range(args.rounds)]
                    name = f"frozen_{kind}_{str(dtype).removeprefix('torch.')}_{inputs}x{outputs}_{rows}"
                    mine, peer = ([rows / s for s in side] for side in zip(*both, strict=True))
                    print(report.line(name, mine, peer, 1.0, unit="rows/s, forward and backward"), flush=True)


def loading(args: argparse.Namespace) -> None:
    """Load a model of 1 GB in a child process."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(vocab_size=512, hidden_size=1536, intermediate_size=4096, num_hidden_layers=10,
                             num_attention_heads=16, num_key_value_heads=8)  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        size = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
        (Path(folder) / "tokenizer.json").write_text("{}")
        del model
        for kind in ("nf4", "int8"):
            done = subprocess.run([sys.executable, __file__, "--child", folder, kind], capture_output=True, check=True)
            found = json.loads(done.stdout.decode().splitlines()[-1])
            print(json.dumps({"measure": f"peak_loading_{kind}", "float32_bytes": size, "target_bytes":
                              found["quantized_bytes"] + SHARD_BYTES, **found}), flush=True)  # fmt: skip


def child(folder: str, kind: str) -> None:
    """Load one model and print what the process took on top of what it had."""
    prepare_process(1)
    config = ModelConfig(model_name_or_path=folder, dtype="float32", quantization=kind)  # pyright: ignore
    warm_up()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until here
    model = load_model(resolve(folder), config, place(config))
    narrow = quantized_size(model)[1] + sum(p.nbytes for p in model.parameters())
    print(json.dumps({"quantized_bytes": narrow, "peak_bytes": resident("VmHWM") - before,
                      "after_bytes": resident("VmRSS") - before}))  # fmt: skip


def warm_up() -> None:
    """Import and compile what a first load imports and compiles."""
    from transformers.models.llama import modeling_llama  # noqa: F401

    QuantizedLinear.of(nn.Linear(64, 64), "nf4", double=True, dtype=torch.float32)(torch.randn(2, 64))


def resident(name: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def bytes_of_base(args: argparse.Namespace) -> None:
    """Print what the linear layers and the whole model take, against float32."""
    for kind, double in (("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)):
        config = ModelConfig(model_name_or_path=args.model, dtype="float32", quantization=kind,  # pyright: ignore
                             double_quantization=double, quantization_backend="luthier")  # fmt: skip
        model = load_model(resolve(args.model), config, place(config))
        (numbers, size), rest = quantized_size(model), sum(p.numel() for p in model.parameters())
        facts = {"linear_layers": round(size / numbers / 4, 4), "target": 0.16 if "4" in kind else None}
        halves = {"whole_model_rest_float32": round((size + 4 * rest) / (numbers + rest) / 4, 4),
                  "whole_model_rest_bfloat16": round((size + 2 * rest) / (numbers + rest) / 4, 4)}  # fmt: skip
        print(json.dumps({"measure": f"bytes_{kind}{'_double' * double}", **facts, **halves}), flush=True)


def loss(args: argparse.Namespace) -> None:
    """Train an adapter on both forms of the base, and compare losses."""
    found: dict[str, tuple[float, float | None]] = {}
    kinds = args.kinds.split(",")
    fixed = {
        "model_name_or_path": args.model, "dataset": str(args.rows), "max_steps": args.steps, "seed": 1, "val_size": 40,
        "cutoff_len": args.cutoff, "per_device_train_batch_size": 4, "learning_rate": 2e-4,
        "save_strategy": "no", "bad_rows": "skip", "plot_loss": False, "eval_steps": args.steps,
        "threads": args.threads,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("none", *kinds):
            run, (quantization, _, start) = Path(folder) / kind.replace(":", "-"), kind.partition(":")
            tuning = {"name": "lora", "rank": 8, "init": start or "zero"}
            result = luthier.run(
                "train", {**fixed, "tuning": tuning, "quantization": quantization, "output_dir": str(run)}
            )
            steps = [float(event["loss"]) for event in read_events(run, "train")]
            found[kind] = mean(steps[-LAST:]), result.eval_loss
            facts = {"first": steps[0], "last_20": found[kind][0], "held_out": result.eval_loss}
            print(json.dumps({"measure": f"loss_{kind}", "steps": len(steps), **facts}), flush=True)
    for kind in kinds:
        ratios = [b / a if a and b else None for a, b in zip(found["none"], found[kind], strict=True)]
        facts = {"last_20": ratios[0], "held_out": ratios[1], "target": 1.02}
        print(json.dumps({"measure": f"loss_{kind}_over_plain", **facts}))


PARTS = {"products": products, "loading": loading, "bytes": bytes_of_base, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cutoff", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="of training; products are timed on one")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--kinds", default="nf4,nf4:loftq,int8", help="quantization, and behind a colon the adapter's start"
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    setup("WARNING")
    if args.child:
        child(*args.child)
        return
    print(json.dumps({"processor": processor_name(), "threads": 1}), flush=True)
    prepare_process(1)
    for part in args.only.split(","):
        PARTS[part](args)


if __name__ == "__main__":
    main()
