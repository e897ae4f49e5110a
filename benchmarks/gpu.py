"""Everything about a GPU in one command: kernels checked and timed, then SFT, DPO and decoding beside their peers.

python benchmarks/gpu.py [--out FILE.jsonl] [--models random-1b smollm2-135m] [--rounds 20] [--steps 8]
python benchmarks/gpu.py --device cpu --small     the same way through everything, on a processor, in minutes

Prints one JSON line for each measure. Every item (a kernel; one training or decoding of one model) runs in a process
of its own, so that a broken kernel costs its own lines only: {"measure": ..., "error": ...}. Exit code 1 if there was
an error or a wrong result. Kernels are checked against their reference in a wider number format by the norm of the
difference over the norm; times are medians of calls in turns, measured with events of the device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = ("kernels", "sft", "dpo", "decode")
ITEM_SECONDS = 1800


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes that Triton's interpreter gets through")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kernels", nargs="+", default=[], help="names on the kernel shelf; none means all")
    parser.add_argument("--models", nargs="+", default=[], help="smollm2-135m, random-1b, random-tiny or a folder")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=0, help="timed calls of each side; 0 means 20, or 1 if small")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0 means 8, or 2 if small")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="time torch.compile as well")
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="where TRL or unsloth may be")
    parser.add_argument("--out", type=Path, help="append the lines to this file too")
    parser.add_argument("--item", help=argparse.SUPPRESS)
    return parser


def completed(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on `--small` and `--device`."""
    options.rounds = options.rounds or (1 if options.small else 20)
    options.steps = options.steps or (2 if options.small else 8)
    options.models = options.models or (["random-tiny"] if options.small else ["smollm2-135m", "random-1b"])
    options.compiled = options.compile == "on" or (options.compile == "auto" and not options.small)
    # Peers run in a folder of their own; links stay, because they say which environment it is.
    options.peer_python = options.peer_python.absolute()
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    return options


def items(options: argparse.Namespace) -> list[str]:
    """Return what is to be measured, a word each."""
    from luthier.kernels.op import KERNELS

    found: list[str] = []
    for part in options.parts:
        names = (options.kernels or [*KERNELS.names()]) if part == "kernels" else options.models
        found += [*(["ceilings:"] if part == "kernels" else []), *(f"{part}:{name}" for name in names)]
    return found


def run_item(item: str, options: argparse.Namespace) -> None:
    """Measure one item in this process and print its lines."""
    part, _, name = item.partition(":")
    if part in ("kernels", "ceilings"):
        import gpu_kernels

        lines = gpu_kernels.ceilings(options) if part == "ceilings" else gpu_kernels.measure(name, options)
    else:
        import gpu_models

        lines = gpu_models.MEASURES[part](name, options)
    for line in lines:
        print(json.dumps(line), flush=True)


def collect(item: str, argv: list[str]) -> list[dict[str, Any]]:
    """Run one item in a process of its own and return its lines, an error among them if it died."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, str(HERE / "gpu.py"), *argv, "--item", item]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=ITEM_SECONDS)
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            output, code = str(error.stdout or ""), f"over {ITEM_SECONDS} seconds"
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"measure"')]
    if code != 0:
        lines.append({"measure": item, "error": f"ended with {code}: {' '.join(last)[:500]}"})
    return lines or [{"measure": item, "error": "printed nothing"}]


def main() -> None:
    parser = arguments()
    options = completed(parser.parse_args())
    if options.item:
        run_item(options.item, options)
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu --small goes the same way on a processor")
    failed = False
    for item in items(options):
        for line in collect(item, sys.argv[1:]):
            failed |= "error" in line or line.get("ok") is False
            text = json.dumps(line)
            print(text, flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
