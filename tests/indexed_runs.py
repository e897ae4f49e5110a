"""Run directories as a training leaves them, for tests of the index."""

import json
from pathlib import Path
from typing import Any

import yaml

STATUS = {"schema": 1, "state": "done", "step": 3, "total": 3, "seconds": 12.5}


def event(seq: int, kind: str, **values: Any) -> str:
    return json.dumps({"seq": seq, "time": "2026-01-01T00:00:00.000+00:00", "kind": kind, **values}) + "\n"


def make(root: Path, name: str, *, config: Any = None, day: int = 1, events: str = "", **status: Any) -> Path:
    run = root / name
    run.mkdir()
    base = {"model": {"model_name_or_path": "smollm2-135m"}, "data": {"dataset": ["tickets.jsonl"]},
            "tuning": {"name": "lora", "rank": 8, "alpha": 16}, "objective": {"name": "sft"},
            "train": {"learning_rate": 1e-4, "seed": 1}}  # fmt: skip
    for section, values in (config or {}).items():
        base[section] = {**base[section], **values}
    (run / "config.yaml").write_text(yaml.safe_dump(base))
    moment = f"2026-01-{day:02}T00:00:00.000+00:00"
    (run / "status.json").write_text(
        json.dumps({**STATUS, "name": name, "started": moment, "updated": moment, **status})
    )
    (run / "events.jsonl").write_text(events)
    return run


def ids(found: tuple[list[Any], int]) -> list[str]:
    return [row.id for row in found[0]]
