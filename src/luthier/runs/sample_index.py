"""Where in samples.jsonl the answers of each step stand, so that a page of them is read and not the file."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from luthier.runs.samples import mean_reward

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Order = Literal["best", "worst"]


@dataclass(frozen=True, slots=True)
class Place:
    """One group of answers."""

    step: int
    offset: int
    bytes: int
    reward: float | None
    """Mean of its answers."""


class SampleIndex:
    """The groups of a run; read on from where the last look ended. Safe to use from several threads."""

    def __init__(self, run: Path) -> None:
        self._path = run / "samples.jsonl"
        self._places: list[Place] = []
        self._offset, self._mark = 0, (0, 0)
        self._lock = threading.Lock()

    def refresh(self) -> list[Place]:
        """Return all groups, as `luthier runs samples` reads them: a later record of a step replaces what follows."""
        with self._lock:
            facts = self._path.stat() if self._path.exists() else None
            if facts is None or facts.st_size < self._offset or facts.st_ino != self._mark[0]:
                self._places, self._offset = [], 0
            if facts is not None and (facts.st_ino, facts.st_size) != self._mark:
                self._mark = (facts.st_ino, facts.st_size)
                self._read_on()
            return list(self._places)

    def _read_on(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while (line := file.readline()).endswith(b"\n"):
                place = _place(line, self._offset)
                self._offset += len(line)
                if place is None:
                    continue
                if self._places and place.step < self._places[-1].step:
                    self._places = [each for each in self._places if each.step < place.step]
                self._places.append(place)

    def read(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """Return groups; one that is no longer there is left out."""
        if not places:
            return []
        found: list[dict[str, Any]] = []
        with self._path.open("rb") as file:
            for each in places:
                file.seek(each.offset)
                group = _parse(file.read(each.bytes))
                if group is not None:
                    found.append(group)
        return found


def choose(places: Sequence[Place], step: int | None, order: Order | None) -> list[Place]:
    """Return the groups of a step, or of all steps; by reward where an order is asked for."""
    chosen = [each for each in places if step is None or each.step == step]
    if order is None:
        return chosen
    graded = [each for each in chosen if each.reward is not None]
    return sorted(graded, key=lambda each: each.reward or 0.0, reverse=order == "best")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _place(line: bytes, offset: int) -> Place | None:
    group = _parse(line)
    if group is None or not isinstance(group.get("step"), int) or not isinstance(group.get("completions"), list):
        return None
    return Place(group["step"], offset, len(line), mean_reward(group))
