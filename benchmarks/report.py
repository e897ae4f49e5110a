"""The line that every benchmark prints: both sides, their ratio, the target, and how far rounds differ."""

from __future__ import annotations

import json
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def line(measure: str, ours: Sequence[float], theirs: Sequence[float], target: float, **facts: object) -> str:
    """Return one JSON object; entry i of `ours` and `theirs` is round i, and `ratio` is the median over rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return json.dumps(
        {
            "measure": measure,
            "luthier": round(median(ours), 4),
            "peer": round(median(theirs), 4),
            "ratio": round(median(ratios), 3),
            "target": target,
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            **facts,
        }
    )
