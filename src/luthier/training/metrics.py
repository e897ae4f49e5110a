"""(sum, count) means over batches and ranks, peak memory, and the progress line."""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luthier.core.batch import PackedBatch, Scores


class Means:
    """Adds up (sum, count) pairs and keeps largest values; a mean is formed once, over everything."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._peaks: dict[str, float] = {}

    def raise_to(self, peaks: Mapping[str, Tensor | float]) -> None:
        """Take in largest values."""
        for name, value in peaks.items():
            self._peaks[name] = max(float(value), self._peaks.get(name, -math.inf))

    def agree(self, gather: Callable[[list[str]], list[str]]) -> None:
        """Take over the names of all ranks, in one order, so that all reduce the same ones; `gather` joins lists."""
        totals, peaks = gather(list(self._totals)), gather(list(self._peaks))
        self._totals = {name: self._totals.get(name, torch.zeros(2, dtype=torch.float64)) for name in totals}
        self._peaks = {name: self._peaks.get(name, -math.inf) for name in peaks}

    def peaks(self, gather: Any) -> dict[str, float]:
        """Return the largest values over all ranks and start again; `gather` collects a tensor of every rank."""
        found = {name: float(gather(torch.tensor([value])).max()) for name, value in self._peaks.items()}
        self._peaks = {}
        return found

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add one batch."""
        for name, (total, count) in metrics.items():
            pair = torch.stack([total.detach().double().cpu(), count.detach().double().cpu()])
            self._totals[name] = self._totals[name] + pair if name in self._totals else pair

    def take(self, reduce: Any) -> dict[str, float]:
        """Return the means over all ranks and start again; `reduce` sums a tensor over ranks."""
        pairs = {name: reduce(pair) for name, pair in self._totals.items()}
        self._totals = {}
        return {name: float(pair[0] / pair[1]) if pair[1] else float("nan") for name, pair in pairs.items()}


def gap_to_engine(scores: Scores, batch: PackedBatch) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return mean and largest |log p of the policy - log p of the engine| of answers that nothing was learned from yet.

    Empty where the batch does not say what the engine thought.
    """
    if "engine_logp" not in batch.streams:
        return {}, {}
    gap_N = (scores.logp.detach() - batch.streams["engine_logp"]).abs()
    count = gap_N.new_tensor(float(len(gap_N)))
    return {"rollout/logp_gap": (gap_N.sum(), count)}, {"rollout/logp_gap_max": gap_N.amax() if len(gap_N) else count}


def peak_memory_bytes() -> int:
    """Return the largest memory so far: of the GPU where one computes, of the process otherwise."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Progress:
    """One bar on a terminal; elsewhere one plain line a logging step."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self.on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._durations: deque[float] = deque(maxlen=50)
        self._last = time.monotonic()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show one training line: `values` has loss or reward, tokens_per_second and peak_memory_bytes."""
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._last = now
        left = statistics.median(self._durations) * (self.total - step)
        shown = "reward" if "reward" in values else "loss"
        text = (
            f"step {step}/{self.total}  {shown} {values[shown]:.4f}  {values['tokens_per_second']:.0f} tokens/s  "
            f"{clock(left)} left  {values['peak_memory_bytes'] / 1e9:.1f} GB"
        )
        logger.debug(text)
        if self.quiet:
            return
        if self.on_terminal:
            width = 24
            done = round(width * step / max(1, self.total))
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            bar = f"[{'#' * done}{'.' * (width - done)}] {text}"[: columns - 1]
            print(f"\r\x1b[K{bar}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Leave the bar's line."""
        if self.on_terminal and not self.quiet:
            print(file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration for people.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
