"""Tokenized units in one memory-mapped file, so that a data set costs disk and not memory.

Shapes: U units, S segments, T tokens of all segments.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from luthier.core.paths import replacing
from luthier.core.types import Segment, Unit

if TYPE_CHECKING:
    from pathlib import Path


class UnitStore(Sequence[Unit]):
    """A read-only list of units, in memory or mapped from a file."""

    def __init__(self, arrays: dict[str, np.ndarray], origins: Sequence[str]) -> None:
        self._tokens, self.weight = arrays["tokens"], arrays["weight"]
        self._segment_start, self._unit_start = arrays["segment_start"], arrays["unit_start"]
        self.unit_hash, self.context_hash = arrays["unit_hash"], arrays["context_hash"]
        self.source_index = arrays["source_index"]
        self.arrays = arrays
        self.origins: Sequence[str] = origins
        self.streams: dict[str, np.ndarray] = {}
        """Numbers of each token beside the weights, [T] each; not saved."""

    def __len__(self) -> int:
        return len(self._unit_start) - 1

    def __getitem__(self, index: Any) -> Any:
        unit: Unit = []
        for segment in range(int(self._unit_start[index]), int(self._unit_start[index + 1])):
            span = slice(int(self._segment_start[segment]), int(self._segment_start[segment + 1]))
            tokens, weight = self._tokens[span].tolist(), self.weight[span].tolist()
            streams = {name: x_T[span].tolist() for name, x_T in self.streams.items()}
            unit.append(Segment(tokens=tokens, weight=weight, streams=streams, origin=str(self.origins[index])))
        return unit

    def predicted(self, index: int) -> np.ndarray:
        """Return where in T the predicted tokens of unit `index` are, in the order of a packed batch."""
        starts = self._segment_start[self._unit_start[index] : self._unit_start[index + 1] + 1]
        wanted = self.weight[starts[0] : starts[-1]] != 0
        wanted[starts[:-1] - starts[0]] = False  # the first token of a segment is predicted by nothing
        return np.flatnonzero(wanted) + starts[0]

    def lengths(self) -> np.ndarray:
        """Return the tokens of each unit, prefixes counted once for each segment, [U]."""
        return np.diff(self._segment_start[self._unit_start])

    def learned(self) -> np.ndarray:
        """Return the learned tokens of each unit, [U]."""
        total = np.concatenate([[0], np.cumsum(np.asarray(self.weight) > 0)])
        return np.diff(total[self._segment_start[self._unit_start]])

    def save(self, path: Path, report: dict[str, Any]) -> None:
        """Write the store and `report` to one file, whole or not at all."""
        metadata = {"origins": json.dumps(list(self.origins)), "report": json.dumps(report)}
        with replacing(path) as temporary:
            save_file(self.arrays, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> tuple[UnitStore, dict[str, Any]]:
        """Map a saved store; return it with its report."""
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return cls(arrays, json.loads(metadata["origins"])), json.loads(metadata["report"])


class StoreBuilder:
    """Collects units in flat arrays."""

    def __init__(self) -> None:
        self.tokens, self.weight = array("i"), array("f")
        self.segment_start, self.unit_start, self.source_index = array("q", [0]), array("q", [0]), array("i")
        self.unit_hash, self.context_hash = array("q"), array("q")
        self.origins: list[str] = []

    def add(self, unit: Unit, source_index: int) -> None:
        """Append a unit that came from the data set at `source_index`."""
        for segment in unit:
            self.tokens.extend(segment.tokens)
            self.weight.extend(segment.weight)
            self.segment_start.append(len(self.tokens))
        self.unit_start.append(len(self.segment_start) - 1)
        self.source_index.append(source_index)
        self.origins.append(unit[0].origin)
        self.unit_hash.append(_hash([t for s in unit for t in s.tokens]))
        first = unit[0]
        learned = next((i for i, w in enumerate(first.weight) if w), len(first.tokens))
        self.context_hash.append(_hash(first.tokens[:learned]))

    def build(self) -> UnitStore:
        """Return the store."""
        kinds = {"tokens": "i", "weight": "f", "source_index": "i"}
        names = ("tokens", "weight", "segment_start", "unit_start", "source_index", "unit_hash", "context_hash")
        types = {"i": np.int32, "f": np.float32}
        arrays = {n: np.array(getattr(self, n), dtype=types.get(kinds.get(n, ""), np.int64)) for n in names}
        return UnitStore(arrays, self.origins)


def _hash(tokens: Sequence[int]) -> int:
    """Return a 64-bit hash that is the same in every process."""
    digest = hashlib.blake2b(np.asarray(tokens, dtype=np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
