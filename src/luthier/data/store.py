"""Tokenized units in one memory-mapped file, so that a data set costs disk and not memory.

Shapes: U units, S segments, T tokens of all segments.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from luthier.core.paths import replacing
from luthier.core.types import Segment, Unit

if TYPE_CHECKING:
    from pathlib import Path

TAG = "tag."
"""What the names of tags begin with among the arrays."""


class UnitStore(Sequence[Unit]):
    """A read-only list of units, in memory or mapped from a file."""

    def __init__(self, arrays: dict[str, np.ndarray], origins: Sequence[str]) -> None:
        self._tokens, self.weight = arrays["tokens"], arrays["weight"]
        self._segment_start, self._unit_start = arrays["segment_start"], arrays["unit_start"]
        self.unit_hash, self.context_hash = arrays["unit_hash"], arrays["context_hash"]
        self.source_index = arrays["source_index"]
        self._aside = arrays["aside"].astype(bool)
        self.tags = {name.removeprefix(TAG): x_S for name, x_S in arrays.items() if name.startswith(TAG)}
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
            made = Segment(
                tokens=self._tokens[span].tolist(),
                weight=self.weight[span].tolist(),
                streams={name: x_T[span].tolist() for name, x_T in self.streams.items()},
                tags={name: float(x_S[segment]) for name, x_S in self.tags.items()},
                aside=bool(self._aside[segment]),
                origin=str(self.origins[index]),
            )
            unit.append(made)
        return unit

    def predicted(self, index: int, *, aside: bool = False) -> np.ndarray:
        """Return where in T the predicted tokens of unit `index` are, in the order of a packed batch.

        `aside` asks for those of the segments that are set aside, and otherwise they are left out.
        """
        places = [np.zeros(0, dtype=np.int64)]
        for segment in range(int(self._unit_start[index]), int(self._unit_start[index + 1])):
            if self._aside[segment] == aside:
                # The first token of a segment is predicted by nothing.
                begin, end = int(self._segment_start[segment]) + 1, int(self._segment_start[segment + 1])
                places.append(np.flatnonzero(self.weight[begin:end]) + begin)
        return np.concatenate(places)

    def lengths(self) -> np.ndarray:
        """Return the tokens of each unit without what is set aside, prefixes counted once for each segment, [U]."""
        length_S = np.where(self._aside, 0, np.diff(self._segment_start))
        return np.diff(np.concatenate([[0], np.cumsum(length_S)])[self._unit_start])

    def save(self, path: Path, report: dict[str, Any]) -> None:
        """Write the store and `report` to one file, whole or not at all."""
        metadata = {"origins": json.dumps(list(self.origins)), "report": json.dumps(report)}
        with replacing(path) as temporary:
            save_file(self.arrays, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> tuple[UnitStore, dict[str, Any]]:
        """Map a saved store; return it with its report. Raises OSError, ValueError or KeyError for a damaged file."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        return cls(arrays, json.loads(metadata["origins"])), json.loads(metadata["report"])


class StoreBuilder:
    """Collects units in flat arrays."""

    def __init__(self) -> None:
        self.tokens, self.weight = array("i"), array("f")
        self.segment_start, self.unit_start, self.source_index = array("q", [0]), array("q", [0]), array("i")
        self.unit_hash, self.context_hash = array("q"), array("q")
        self.aside = array("b")
        self.tags: dict[str, array[float]] = {}
        self.origins: list[str] = []

    def add(self, unit: Unit, source_index: int) -> None:
        """Append a unit that came from the data set at `source_index`; all segments have tags of the same names."""
        for segment in unit:
            self.tokens.extend(segment.tokens)
            self.weight.extend(segment.weight)
            self.segment_start.append(len(self.tokens))
            self.aside.append(segment.aside)
            for name, value in segment.tags.items():
                self.tags.setdefault(name, array("f")).append(value)
        self.unit_start.append(len(self.segment_start) - 1)
        self.source_index.append(source_index)
        self.origins.append(unit[0].origin)
        self.unit_hash.append(hash_tokens([t for s in unit if not s.aside for t in s.tokens], unit[0].tags))
        first = unit[0]
        learned = next((i for i, w in enumerate(first.weight) if w), len(first.tokens))
        self.context_hash.append(hash_tokens(first.tokens[:learned]))

    def build(self) -> UnitStore:
        """Return the store."""
        arrays = {name: np.array(getattr(self, name), dtype=dtype) for name, dtype in _DTYPES.items()}
        arrays |= {f"{TAG}{name}": np.array(x_S, dtype=np.float32) for name, x_S in self.tags.items()}
        return UnitStore(arrays, self.origins)


_DTYPES: dict[str, Any] = {
    "tokens": np.int32,
    "weight": np.float32,
    "segment_start": np.int64,
    "unit_start": np.int64,
    "source_index": np.int32,
    "unit_hash": np.int64,
    "context_hash": np.int64,
    "aside": np.int8,
}


def hash_tokens(tokens: Sequence[int], tags: Mapping[str, float] | None = None) -> int:
    """Return a 64-bit hash that is the same in every process."""
    digest = hashlib.blake2b(np.asarray(tokens, dtype=np.int32).tobytes(), digest_size=8)
    if tags:
        digest.update(json.dumps(tags, sort_keys=True).encode())
    return int.from_bytes(digest.digest(), "little", signed=True)
