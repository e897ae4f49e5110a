"""What was read of runs lately: their curves, the places of their answers, what rules say of their metrics."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from luthier.runs.curves import CurveCache, RunCurves
from luthier.runs.health import examined
from luthier.runs.sample_index import SampleIndex
from luthier.runs.series import View, objective_of

if TYPE_CHECKING:
    from pathlib import Path

MOST_RUNS = 64
JUDGED_POINTS = 1000
"""Rules look at so many points of a metric; medians hardly differ."""


class Caches:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._curves = CurveCache()
        self._samples: OrderedDict[Path, SampleIndex] = OrderedDict()
        self._findings: OrderedDict[Path, tuple[int, list[dict[str, Any]]]] = OrderedDict()
        self._lock = threading.Lock()

    def curves(self, run: Path) -> RunCurves:
        """Return the curves of a run as they are now."""
        return self._curves.of(run)

    def samples(self, run: Path) -> SampleIndex:
        """Return where the answers of a run stand."""
        with self._lock:
            return _kept(self._samples, run, self._samples.get(run) or SampleIndex(run))

    def findings(self, run: Path) -> list[dict[str, Any]]:
        """Return what rules say about the metrics of a run."""
        curves = self.curves(run)
        with self._lock:
            known = self._findings.get(run)
        if known is None or known[0] != curves.last_seq:
            found = examined(View(curves.series(JUDGED_POINTS), objective_of(run)))
            known = (curves.last_seq, found["diagnosis"])
        with self._lock:
            return _kept(self._findings, run, known)[1]


def _kept(table: OrderedDict[Path, Any], run: Path, value: Any) -> Any:
    table[run] = value
    table.move_to_end(run)
    while len(table) > MOST_RUNS:
        table.popitem(last=False)
    return value
