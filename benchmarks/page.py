"""The page under load: first paint, a run of a million points, a data set of 100,000 rows, reconnects, slow-down.

python benchmarks/page.py [--points 1000000] [--rows 100000] [--reconnects 1000] [--steps 60] [--rounds 3]

Everything is what a person waits for: a browser (`benchmarks/page.mjs`, Playwright in Debian's Chromium) opens a real
`luthier ui` and says when things were there. Training is timed by turns with and without a page that watches it.
Needs `make web` and Chromium.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil
import report

if TYPE_CHECKING:
    from collections.abc import Generator

HERE = Path(__file__).parent
TARGETS = {"first_paint_s": 1.0, "million_points_first_s": 2.0, "million_points_s": 2.0, "data_set_s": 2.0}
MOST_GROWTH_BYTES = 50e6
MOST_SLOWER = 1.02


class Ui:
    """A running `luthier ui`."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.data = folder / "runs", folder / "data"
        command = [sys.executable, "-m", "luthier", "ui", "--no-browser", "--port", "0", "--runs", str(self.runs)]
        command += ["--data", str(self.data), "--token-file", str(folder / "token")]
        began = time.monotonic()
        self.log = (folder / "ui.log").open("w+")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while not (found := re.search(r"(http://\S+)/#token=(\S+)", (folder / "ui.log").read_text())):
            if self.process.poll() is not None:
                raise RuntimeError((folder / "ui.log").read_text())
            time.sleep(0.01)
        self.seconds = time.monotonic() - began
        self.origin, self.token = found.groups()

    def memory(self) -> int:
        """Return the bytes that the server holds."""
        return psutil.Process(self.process.pid).memory_info().rss

    def open(self, path: str) -> Any:
        """Ask as a script does."""
        asked = urllib.request.Request(f"{self.origin}/api{path}", headers={"Authorization": f"Bearer {self.token}"})
        return urllib.request.urlopen(asked, timeout=60)


@contextmanager
def running(folder: Path) -> Generator[Ui]:
    """Run a server while the block runs."""
    ui = Ui(folder)
    try:
        yield ui
    finally:
        ui.process.terminate()
        ui.process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--reconnects", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "runs" / "million", options.points)
        make_rows(folder / "data" / "large.jsonl", options.rows)
        with running(folder) as ui:
            print(json.dumps({"measure": "page_server_start_s", "luthier": round(ui.seconds, 2)}), flush=True)
            look(ui, options)
            reconnect(ui, options.reconnects)
            watch(ui, folder, options)


def make_run(folder: Path, points: int) -> None:
    """Write a finished run with so many steps."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model:\n  model_name_or_path: smollm2-135m\ntrain:\n  seed: 1\n")
    status = {"schema": 1, "state": "done", "step": points, "total": points, "started": "2026-01-01T00:00:00.000+00:00"}
    (folder / "status.json").write_text(json.dumps({**status, "updated": "2026-01-02T00:00:00.000+00:00"}))
    (folder / "log.txt").write_text("made for a measurement\n")
    with (folder / "events.jsonl").open("w") as file:
        for step in range(1, points + 1):
            loss = 3 * math.exp(-step / points * 3) + math.sin(step * 0.7) * 0.1
            file.write(
                f'{{"seq": {step}, "time": "2026-01-01T00:00:00.000+00:00", "mono": {step / 10}, "kind": "train", '
                f'"step": {step}, "loss": {loss:.5f}, "learning_rate": {1e-3 * (1 - step / points):.3e}, '
                f'"grad_norm": {1 + math.cos(step):.4f}, "tokens": {step * 512}, "tokens_per_second": 2000.5}}\n'
            )


def make_rows(path: Path, rows: int) -> None:
    """Write rows of a usual length."""
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "instruction": f"Question {number} 问题 🎻",
                "input": "",
                "output": "An answer. " * (5 + number % 40),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def look(ui: Ui, options: argparse.Namespace) -> None:
    """Print what a browser saw."""
    done = subprocess.run(
        ["node", str(HERE / "page.mjs"), ui.origin, ui.token, "look", str(ui.data)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name, seconds in json.loads(done.stdout).items():
        target = TARGETS.get(name)
        facts = {"points": options.points} if "points" in name else {"rows": options.rows} if "data" in name else {}
        print(json.dumps({"measure": f"page_{name}", "luthier": seconds, "target": target, **facts}), flush=True)


def reconnect(ui: Ui, times: int) -> None:
    """Print how the server's memory grew while clients came, read a little of two streams, and left."""
    for _ in range(50):
        _taste(ui)
    before = ui.memory()
    for _ in range(times):
        _taste(ui)
    grown = ui.memory() - before
    print(
        json.dumps({"measure": "page_reconnect_growth_mb", "luthier": round(grown / 1e6, 2), "times": times,
                    "target": MOST_GROWTH_BYTES / 1e6, "server_mb": round(ui.memory() / 1e6, 1)}),
        flush=True,
    )  # fmt: skip


def _taste(ui: Ui) -> None:
    for path in ("/changes", "/runs/million/events?after=999000"):
        with ui.open(path) as stream:
            stream.read(10)


def watch(ui: Ui, folder: Path, options: argparse.Namespace) -> None:
    """Print how much slower training is while a page watches it."""
    alone: list[float] = []
    watched: list[float] = []
    for number in range(options.rounds):
        alone.append(_train(ui, folder, options.steps, f"alone-{number}", watching=False))
        watched.append(_train(ui, folder, options.steps, f"watched-{number}", watching=True))
    print(report.line("page_watched_training_steps_per_second", watched, alone, 1 / MOST_SLOWER))


def _train(ui: Ui, folder: Path, steps: int, name: str, *, watching: bool) -> float:
    """Return steps in a second of a training of the packaged model, over its second half."""
    run = ui.runs / name
    command = [sys.executable, "-m", "luthier", "train", str(HERE.parent / "examples" / "sft_lora.yaml")]
    command += [f"output_dir={run}", f"max_steps={steps}", "logging_steps=1", "save_strategy=no", "eval_strategy=no"]
    with (folder / "train.log").open("w") as log:
        page = None
        training = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE.parent)
        if watching:
            while not (run / "events.jsonl").exists() and training.poll() is None:
                time.sleep(0.05)
            page = subprocess.Popen(["node", str(HERE / "page.mjs"), ui.origin, ui.token, "watch", name])
        if training.wait() != 0:
            raise RuntimeError((folder / "train.log").read_text())
        if page is not None:
            page.terminate()
            page.wait()
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    times = [event["mono"] for event in events if event["kind"] == "train"]
    times = times[len(times) // 2 :]  # by then the browser has started
    shutil.rmtree(run)
    return 1 / median(later - earlier for earlier, later in pairwise(times))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
