"""Run directories without a training: status, settings, events, as the trainer writes them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import yaml

from luthier.runs.process import Identity

SETTINGS: dict[str, Any] = {
    "model": {"model_name_or_path": "tiny", "hub_token": None},
    "data": {"dataset": ["rows.jsonl"]},
    "tuning": {"name": "lora", "rank": 8},
    "objective": {"name": "sft"},
    "train": {"learning_rate": 1e-4, "output_dir": "runs/a"},
}
NOBODY = Identity(2**22 - 1, socket.gethostname(), 1.0, Identity.here().boot).as_dict()
"""A process of this boot that is gone."""


def line(seq: int, step: int, kind: str = "train", **values: Any) -> str:
    return json.dumps({"seq": seq, "time": "t", "mono": seq * 0.5, "kind": kind, "step": step, **values}) + "\n"


def make_run(
    root: Path, name: str, *, steps: int = 10, state: str = "done", settings: Any = None, **status: Any
) -> Path:
    """Write a run of so many steps; one that is at work belongs to this process."""
    run = root / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(settings or SETTINGS))
    at_work = state in ("running", "starting")
    process = Identity.here().as_dict() if at_work else NOBODY
    started = "2026-01-01T00:00:00.000+00:00"
    facts = {"name": name, "schema": 1, "pid": os.getpid(), "process": process, "started": started, "updated": started}
    set_status(run, **facts, state=state, step=steps, total=steps, **status)
    events = [line(i, i, loss=round(1 / i, 4), tokens=10 * i) for i in range(1, steps + 1)]
    (run / "events.jsonl").write_text("".join(events))
    (run / "log.txt").write_text("".join(f"line {i}\n" for i in range(1, 21)))
    return run


def set_status(run: Path, **facts: Any) -> None:
    """Replace status.json, keeping what is not named."""
    path = run / "status.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    (run / "status.tmp").write_text(json.dumps({**before, **facts}))
    (run / "status.tmp").rename(path)


def append(run: Path, *lines: str) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write("".join(lines))


def resident_bytes() -> int:
    return psutil.Process().memory_info().rss
