"""training_loss.png."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.runs.store import read_events

if TYPE_CHECKING:
    from pathlib import Path


def plot_loss(run: Path) -> Path | None:
    """Draw loss and evaluation loss by step, or, where answers are graded, their reward; None when nothing is there."""
    train, held_out = read_events(run, "train"), read_events(run, "eval")
    if not train:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    name = "reward" if any("reward" in event for event in train) else "loss"
    steps, values = [e["step"] for e in train], [e.get(name) for e in train]
    axes.plot(steps, values, color="tab:blue", alpha=0.3, label=name)
    axes.plot(steps, smoothed(values), color="tab:blue", label=f"{name}, smoothed")
    graded = [event for event in held_out if f"eval_{name}" in event]
    if graded:
        x, y = [e["step"] for e in graded], [e[f"eval_{name}"] for e in graded]
        axes.plot(x, y, "o-", color="tab:orange", label=f"eval_{name}")
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.legend()
    path = run / "training_loss.png"
    figure.savefig(path, dpi=110)
    return path


def smoothed(values: list[float | None], keep: float = 0.9) -> list[float]:
    """Return a debiased exponential mean.

    >>> smoothed([1.0, 1.0])
    [1.0, 1.0]
    """
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * (value or 0.0)
        weight = keep * weight + (1 - keep)
        out.append(mean / weight)
    return out
