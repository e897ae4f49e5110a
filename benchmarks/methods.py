"""What each tuning makes of the demonstration task: exact answers, trained parameters, size, speed and memory.

python benchmarks/methods.py [--only lora prefix] [--write] > FILE; python benchmarks/methods.py --page FILE

The tickets of examples/tickets with SmolLM2-135M, one pass over 608 rows, 64 held-out rows answered greedily. Each
method runs in a process of its own with its own usual settings. `--write` puts table and picture into docs/, and
`--page` does it from lines that were printed before, the last one of each method.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TICKETS = ROOT / "examples/tickets/tickets.yaml"
PICTURE, TABLE = ROOT / "docs/methods.png", ROOT / "docs/methods.md"

METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 10},
    "lora": {"finetuning_type": "lora"},
    "rslora": {"finetuning_type": "lora", "use_rslora": True},
    "dora": {"finetuning_type": "lora", "use_dora": True},
    "pissa": {"finetuning_type": "lora", "pissa_init": True},
    "olora": {"finetuning_type": "lora", "tuning.init": "olora"},
    "lora+": {"finetuning_type": "lora", "loraplus_lr_ratio": 4},
    "qlora": {"finetuning_type": "qlora"},
    "loftq": {"finetuning_type": "qlora", "tuning.init": "loftq"},
    "oft": {"finetuning_type": "oft"},
    "ia3": {"finetuning_type": "ia3"},
    "vera": {"finetuning_type": "vera"},
    "bottleneck": {"finetuning_type": "bottleneck"},
    "prompt": {"finetuning_type": "prompt"},
    "ptuning": {"finetuning_type": "ptuning"},
    "prefix": {"finetuning_type": "prefix"},
    "ptuning_v2": {"finetuning_type": "ptuning_v2"},
}
"""Method -> what differs from the usual settings."""
NOT_LORA = {"lora_rank": None, "lora_target": None, "learning_rate": 0}


def run_one(name: str, more: list[str]) -> dict[str, Any]:
    """Train and grade one method in this process."""
    from luthier.config.load import load_config
    from luthier.core.log import setup
    from luthier.runs.store import read_events
    from luthier.training.metrics import peak_memory_bytes
    from luthier.workflows.evaluate import evaluate
    from luthier.workflows.train import train

    setup()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        own = {**NOT_LORA, **METHODS.get(name, {}), "output_dir": str(run), "save_steps": 10_000, "plot_loss": False}
        texts = {key: json.dumps(value) for key, value in own.items()} | dict(text.split("=", 1) for text in more)
        config = load_config(TICKETS, [f"{key}={text}" for key, text in texts.items()]).config
        if name == "untrained":
            return {"method": name, "exact": evaluate(config).exact_match}
        train(config)
        peak = peak_memory_bytes()
        events = read_events(run, "train")
        seconds = sum(event["seconds"] for event in events[1:])
        rows = config.train.per_device_train_batch_size * (len(events) - 1)
        trained = [f for f in run.glob("*.safetensors") if f.name in ("adapter_model.safetensors", "model.safetensors")]
        graded = evaluate(replace(config, model=replace(config.model, model_name_or_path=str(run))))
        return {
            "method": name,
            "exact": graded.exact_match,
            "interval": graded.interval,
            "loss": sum(event["loss"] for event in events[-20:]) / len(events[-20:]),
            "learning_rate": load_config(run).config.train.learning_rate,
            "trained_parameters": learning_of(run),
            "megabytes": sum(f.stat().st_size for f in trained) / 1e6,
            "rows_per_second": rows / seconds,
            "peak_gb": peak / 1e9,
        }


def learning_of(run: Path) -> int:
    """Return the parameters that learned, as the run says."""
    log = (run / "log.txt").read_text(encoding="utf-8")
    return int(float(log.split(" M learn")[0].rsplit(" ", 1)[1]) * 1e6)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| method | exact answers | learning rate | trained parameters | file | rows/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "loss" not in r:
            lines.append(f"| {r['method']} | {r['exact']:.2f} | | | | | |")
            continue
        lines.append(
            f"| {r['method']} | {r['exact']:.2f} ({r['interval'][0]:.2f} to {r['interval'][1]:.2f}) "
            f"| {r['learning_rate']:g} | {r['trained_parameters'] / 1e6:.2f} M | {r['megabytes']:.1f} MB "
            f"| {r['rows_per_second']:.1f} | {r['peak_gb']:.1f} GB |"
        )
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]]) -> None:
    """Draw exact answers with their 95 % interval, a bar a method, and how much it trains."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [r for r in results if "loss" in r][::-1]
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    exact = [r["exact"] for r in shown]
    reach = [[abs(r["interval"][side] - r["exact"]) for r in shown] for side in (0, 1)]
    names = [f"{r['method']}  {r['trained_parameters'] / 1e6:.2f} M" for r in shown]
    axes.barh(names, exact, xerr=reach, color="tab:blue", alpha=0.7, error_kw={"alpha": 0.5, "capsize": 2})
    axes.set_xlabel("exact answers, share of 64; the untrained model gives none")
    axes.set_xlim(0, 1)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Run the methods one after the other and print a JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["untrained", *METHODS])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write docs/methods.md and docs/methods.png")
    parser.add_argument("--page", type=Path, help="write the page from printed lines, and run nothing")
    parser.add_argument("settings", nargs="*", help="key=value for every method")
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(run_one(options.one, options.settings)))
        return
    if options.page:
        printed = [json.loads(line) for line in options.page.read_text(encoding="utf-8").splitlines()]
        latest = {result["method"]: result for result in printed}
        write([latest[name] for name in ("untrained", *METHODS) if name in latest])
        return
    results: list[dict[str, Any]] = []
    for name in options.only:
        command = [sys.executable, __file__, "--one", name, *options.settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
        if line is None:
            sys.exit(f"{name} failed:\n{done.stderr}")
        results.append(json.loads(line.removeprefix("RESULT ")))
        print(line.removeprefix("RESULT "), flush=True)
    if options.write:
        write(results)


def write(results: list[dict[str, Any]]) -> None:
    """Put the table and the picture into docs/."""
    head, _, _ = TABLE.read_text(encoding="utf-8").partition("| method |")
    TABLE.write_text(head + table(results), encoding="utf-8")
    draw(results)


if __name__ == "__main__":
    main()
