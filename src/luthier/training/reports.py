"""The files that scripts read beside a run in LLaMA-Factory's and transformers' layout, all derived from its events."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from luthier.core.paths import write_whole
from luthier.runs.store import plain_json, read_events
from luthier.training.merit import merit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from luthier.config.training import TrainConfig

LOG, STATE, RESULTS = "trainer_log.jsonl", "trainer_state.json", "all_results.json"
NAMES = {"loss": "loss", "learning_rate": "lr", "reward": "reward", "rewards/accuracies": "accuracy",
         "accuracy": "accuracy", "eval_loss": "eval_loss", "eval_reward": "eval_reward"}  # fmt: skip
"""Name in an event -> name in a line of the log."""
_NOT_LOGGED = frozenset(
    {
        "seq",
        "time",
        "mono",
        "kind",
        "tokens",
        "tokens_per_second",
        "peak_memory_bytes",
        "seconds",
        "nonfinite",
        "at_end",
    }
)
"""What an event holds beside the metrics that transformers logs: where it stands, and what no two runs share."""


class TrainerLog:
    """Writes trainer_log.jsonl line by line while a run goes on; its lines are a function of the run's events."""

    def __init__(self, run: Path, after: int = 0) -> None:
        """Write the lines up to step `after`, where a run goes on; those behind it come again."""
        self.path = run / LOG
        self._clock = Clock()
        lines = [self._line(event) for event in read_events(run) if event.get("step", 0) <= after]
        write_whole(self.path, "".join(plain_json(line) + "\n" for line in lines if line))

    def add(self, event: Mapping[str, Any]) -> None:
        """Append the line of an event, where it has one."""
        line = self._line(event)
        if line:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(plain_json(line) + "\n")

    def _line(self, event: Mapping[str, Any]) -> dict[str, Any]:
        self._clock.tick(event)
        if event["kind"] not in ("train", "eval"):
            return {}
        step, total, seconds = event["step"], max(1, self._clock.total), self._clock.seconds
        values = {shown: event[name] for name, shown in NAMES.items() if event.get(name) is not None}
        line = {"current_steps": step, "total_steps": total, **values, "epoch": event["epoch"]}
        line |= {
            "percentage": round(100 * step / total, 2),
            "elapsed_time": _clock_face(seconds),
            "remaining_time": _clock_face(seconds / max(1, step) * max(0, total - step)),
        }
        if event.get("tokens"):
            line |= {"throughput": round(event["tokens"] / max(seconds, 1e-9), 2), "total_tokens": event["tokens"]}
        return line


class Clock:
    """Seconds that a run has trained, over all times that it was gone on with, and its number of steps."""

    def __init__(self) -> None:
        self.seconds, self.total = 0.0, 0
        self._before, self._began = 0.0, 0.0

    def tick(self, event: Mapping[str, Any]) -> None:
        """Take an event in, in order."""
        if event["kind"] == "begin":
            self._before, self._began, self.total = self.seconds, event["mono"], event["total"]
        elif event["kind"] in ("train", "eval"):
            self.seconds = self._before + event["mono"] - self._began


def _clock_face(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def log_history(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of each logged step, as transformers' Trainer keeps them."""
    return [
        {k: v for k, v in event.items() if k not in _NOT_LOGGED} | _seen(event)
        for event in events
        if event["kind"] in ("train", "eval")
    ]


def _seen(event: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_input_tokens_seen": event["tokens"]} if "tokens" in event else {}


def trainer_state(run: Path, config: TrainConfig, step: int, total: int) -> dict[str, Any]:
    """Return what transformers' TrainerState holds after `step`."""
    events = [event for event in read_events(run) if event.get("step", 0) <= step]
    history = log_history(events)
    best = _best(events, config)
    folder = run / f"checkpoint-{best['step']}" if best else None
    return {
        "best_global_step": best["step"] if best else None,
        "best_metric": best[merit(config, best)[0]] if best else None,
        "best_model_checkpoint": str(folder) if folder is not None and folder.is_dir() else None,
        "epoch": history[-1]["epoch"] if history else 0.0,
        "eval_steps": config.eval_steps,
        "global_step": step,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": history,
        "logging_steps": config.logging_steps,
        "max_steps": total,
        "num_input_tokens_seen": max((entry.get("num_input_tokens_seen", 0) for entry in history), default=0),
        "num_train_epochs": math.ceil(config.num_train_epochs),
        "save_steps": config.save_steps,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": config.per_device_train_batch_size,
        "trial_name": None,
        "trial_params": None,
    }


def _best(events: Iterable[dict[str, Any]], config: TrainConfig) -> dict[str, Any] | None:
    """Return the best evaluation of the loop; the one behind its end chooses no checkpoint any more."""
    held = [e for e in events if e["kind"] == "eval" and not e.get("at_end") and not e.get("nonfinite")]
    return min(held, key=lambda event: merit(config, event)[1], default=None)


def write_state(folder: Path, run: Path, config: TrainConfig, step: int, total: int) -> None:
    """Write trainer_state.json into `folder`: a checkpoint, or the run itself."""
    _write(folder / STATE, trainer_state(run, config, step, total))


def train_results(run: Path, rows_per_step: int | None) -> dict[str, Any]:
    """Return what training came to: the mean loss of all steps, seconds, speed.

    `rows_per_step` is None where steps have no fixed number of rows.
    """
    clock, weighted, last = Clock(), 0.0, {"step": 0, "epoch": 0.0, "tokens": 0}
    for event in read_events(run):
        clock.tick(event)
        if event["kind"] == "train":
            weighted += (event["loss"] if event["loss"] is not None else math.nan) * (event["step"] - last["step"])
            last = {name: event[name] for name in last}
    steps, seconds = last["step"], max(clock.seconds, 1e-9)
    found = {"epoch": last["epoch"], "num_input_tokens_seen": last["tokens"], "train_loss": weighted / max(1, steps)}
    found |= {"train_runtime": round(clock.seconds, 4), "train_steps_per_second": round(steps / seconds, 3)}
    if rows_per_step is not None:
        found["train_samples_per_second"] = round(steps * rows_per_step / seconds, 3)
    return found | {"train_tokens_per_second": round(last["tokens"] / seconds, 3)}


def write_results(folder: Path, split: str, values: Mapping[str, Any]) -> None:
    """Write `split`_results.json (train, eval or predict) and take its values into all_results.json."""
    every: dict[str, Any] = json.loads((folder / RESULTS).read_text("utf-8")) if (folder / RESULTS).is_file() else {}
    _write(folder / f"{split}_results.json", dict(values))
    _write(folder / RESULTS, {**every, **values})


def _write(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, json.dumps(_finite(values), indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return the value with what JSON has no number for as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
