"""The metrics of a run, from events.jsonl: values by name, and how they began, ended and moved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import correlation, median, pstdev
from typing import TYPE_CHECKING, Any, cast

from luthier.runs.store import read_events

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = 5
"""Fewest points whose median stands for the beginning or the end of a run."""
_NO_METRICS = frozenset({"seq", "step", "epoch", "mono", "tokens", "peak_memory_bytes", "nonfinite"})
"""Numbers of an event that say where it stands, or only ever grow."""


@dataclass(slots=True)
class Series:
    """One metric: steps, and the value at each; what is no number is left out."""

    steps: list[int] = field(default_factory=list[int])
    values: list[float] = field(default_factory=list[float])

    def __len__(self) -> int:
        return len(self.values)

    def ends(self, window: int) -> tuple[float, float]:
        """Return the medians of the first and the last tenth, of `window` points at least."""
        size = max(min(window, len(self)), len(self) // 10)
        return median(self.values[:size]), median(self.values[-size:])

    def smooth(self) -> tuple[list[int], list[float]]:
        """Return the median of each point and those before it, `WINDOW` in all, with the step of the last of them."""
        starts = range(len(self) - WINDOW + 1)
        return self.steps[WINDOW - 1 :], [median(self.values[i : i + WINDOW]) for i in starts]


@dataclass(slots=True)
class View:
    """What rules look at. A question about a metric that is not there, or has too few points, is answered with None."""

    series: dict[str, Series]
    objective: str = ""
    """Name of the objective in config.yaml."""

    @classmethod
    def of(cls, run: Path) -> View:
        """Read a run directory."""
        series: dict[str, Series] = {}
        for event in read_events(run):
            if event.get("kind") in ("train", "eval") and "step" in event:
                _add(series, event)
        return cls(series, objective_of(run))

    @property
    def judged(self) -> int:
        """Return how many metrics have enough points to be judged."""
        return sum(len(series) >= 2 * WINDOW for series in self.series.values())

    @property
    def is_rollout(self) -> bool:
        """Tell whether the run learns from answers of its own."""
        return "reward" in self.series

    def get(self, name: str, least: int = 2 * WINDOW) -> Series | None:
        """Return a metric with `least` points."""
        found = self.series.get(name)
        return found if found is not None and len(found) >= least else None

    def ends(self, name: str, least: int = 2 * WINDOW) -> tuple[float, float] | None:
        """Return how a metric began and ended."""
        found = self.get(name, least)
        return None if found is None else found.ends(min(WINDOW, least // 2))

    def last(self, name: str) -> float | None:
        """Return how a metric ended."""
        ends = self.ends(name)
        return None if ends is None else ends[1]

    def spread(self, name: str) -> float:
        """Return the size below which differences of a metric mean little: its deviation among answers, or steps."""
        among_answers, own = self.ends(f"{name}_std"), self.get(name)
        return max(among_answers or (0.0,)) or (pstdev(own.values) if own else 0.0) or 1e-9

    def together(self, one: str, other: str) -> float | None:
        """Return how far two metrics rise and fall together, from -1 to 1."""
        a, b = self.get(one, 20), self.get(other, 20)
        if a is None or b is None or a.steps != b.steps or pstdev(a.values) == 0 or pstdev(b.values) == 0:
            return None
        return correlation(a.values, b.values)


def _add(series: dict[str, Series], event: dict[str, Any]) -> None:
    for name, value in event.items():
        if name in _NO_METRICS or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if math.isfinite(value):
            found = series.setdefault(name, Series())
            found.steps.append(int(event["step"]))
            found.values.append(float(value))


def objective_of(run: Path) -> str:
    """Return the name of the objective in config.yaml; an empty text where none is named."""
    import yaml

    path = run / "config.yaml"
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    section: Any = cast("dict[str, Any]", config).get("objective") if isinstance(config, dict) else None
    return str(cast("dict[str, Any]", section).get("name", "")) if isinstance(section, dict) else ""
