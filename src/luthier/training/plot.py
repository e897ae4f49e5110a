"""Curves of a run as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.runs.store import read_events

if TYPE_CHECKING:
    from pathlib import Path

ALONE = ("eval_loss", "rewards/accuracies", "eval_accuracy")
"""Metrics that get a picture of their own: training_NAME.png."""


def plot_loss(run: Path) -> list[Path]:
    """Draw training_loss.png, and a picture for each metric of ALONE that the run has; return what was drawn.

    training_loss.png shows loss and evaluation loss by step, or, where answers are graded, their reward.
    """
    train, held_out = read_events(run, "train"), read_events(run, "eval")
    if not train:
        return []
    name = "reward" if any("reward" in event for event in train) else "loss"
    drawn = [_draw(run / "training_loss.png", name, _points(train, name), _points(held_out, f"eval_{name}"))]
    for metric in ALONE:
        points = _points([*train, *held_out], metric)
        if points:
            drawn.append(_draw(run / f"training_{metric.replace('/', '_')}.png", metric, points, []))
    return drawn


def _points(events: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(event["step"], event[name]) for event in events if event.get(name) is not None]


def _draw(path: Path, name: str, points: list[tuple[int, float]], held_out: list[tuple[int, float]]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, color="tab:blue", alpha=0.3, label=name)
    axes.plot(steps, smoothed(values), color="tab:blue", label=f"{name}, smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label=f"eval_{name}")
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.legend()
    figure.savefig(path, dpi=110)
    return path


def smoothed(values: list[float], keep: float = 0.9) -> list[float]:
    """Return a debiased exponential mean.

    >>> smoothed([1.0, 1.0])
    [1.0, 1.0]
    """
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(mean / weight)
    return out
