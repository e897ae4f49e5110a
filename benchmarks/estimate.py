"""How far `luthier estimate` is from what `luthier train` takes: peak memory and seconds of a step, on six settings.

python benchmarks/estimate.py --rows FILE.json [--steps 5]

Each setting is estimated and trained in fresh processes, one after the other. Every run reads the same rows in the same
order; the first step warms up and is left out of the seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from luthier.kernels.cpu import processor_name

MEMORY_TARGET, TIME_TARGET = 0.15, 0.30
COMMON = {
    "model_name_or_path": "smollm2-135m",
    "cutoff_len": 1024,
    "lora_target": "all",
    "disable_shuffling": True,
    "save_strategy": "no",
    "plot_loss": False,
}
LORA = {"finetuning_type": "lora", "lora_rank": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora float32": {**LORA, "dtype": "float32", "per_device_train_batch_size": 8},
    "lora best": {**LORA, "per_device_train_batch_size": 8},
    "lora recomputed": {**LORA, "per_device_train_batch_size": 8, "gradient_checkpointing": True},
    "lora packed, accumulated": {**LORA, "packing": True, "gradient_accumulation_steps": 2},
    "full": {"finetuning_type": "full", "per_device_train_batch_size": 4},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 4, "per_device_train_batch_size": 8},
}


def command(word: str, file: Path, *more: str) -> str:
    """Run a luthier command and return its standard output."""
    parts = [sys.executable, "-m", "luthier", word, str(file), *more]
    return subprocess.run(parts, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(name: str, settings: dict[str, Any], rows: Path, steps: int, folder: Path) -> None:
    """Estimate, train and print both."""
    batch = settings.get("per_device_train_batch_size", 8)
    own = {"dataset": str(rows), "max_samples": steps * batch, "max_steps": steps}
    file = folder / "setting.yaml"
    file.write_text(yaml.safe_dump({**COMMON, **settings, **own}))
    planned = json.loads(command("estimate", file, "--json").splitlines()[-1])["estimate"]
    run = folder / name.replace(" ", "-")
    command("train", file, f"output_dir={run}")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    done = [event for event in events if event["kind"] == "train"]
    peak = max(event["peak_memory_bytes"] for event in done)
    seconds = mean(event["seconds"] for event in done[1:])
    for measure_name, estimated, found, target in (
        ("peak_gb", planned["peak_bytes"] / 1e9, peak / 1e9, MEMORY_TARGET),
        ("seconds_a_step", planned["seconds"] / planned["steps"], seconds, TIME_TARGET),
    ):
        error = estimated / found - 1
        line = {
            "measure": f"estimate_{measure_name}",
            "setting": name,
            "estimated": round(estimated, 3),
            "measured": round(found, 3),
            "error": round(error, 3),
            "target": target,
            "within": abs(error) <= target,
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON list of alpaca rows")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=list(SETTINGS))
    options = parser.parse_args()
    print(json.dumps({"processor": processor_name()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in SETTINGS.items():
            if options.only in (None, name):
                measure(name, settings, options.rows.resolve(), options.steps, Path(folder))


if __name__ == "__main__":
    main()
