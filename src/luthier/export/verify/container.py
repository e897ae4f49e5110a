"""Read the frame of a GGUF file without trusting it: every count and length is held against the file before it is used.

Layout: magic, version, number of tensors, number of values; the values; the tensors' names, sizes, types and places;
then, aligned, their bytes. A bad file raises `Damaged` with a sentence; it never makes us allocate more than it holds.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from luthier.export.verify.report import Check

VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_NESTING = 4
MOST_NAME = 64
"""Bytes of a tensor's name: what llama.cpp has room for, its closing zero included."""
MOST_KEY = 65535
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _TEXT, _LIST = 7, 8, 9


class Damaged(Exception):
    """The file is not what it says it is."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file, unread."""

    name: str
    shape: tuple[int, ...]
    """As torch has it: the last number is the one that runs fastest."""
    type: str
    """Such as "Q8_0"."""
    start: int
    """Place in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Container:
    """The frame of a file."""

    path: Path
    version: int
    alignment: int
    values: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def architecture(self) -> str:
        """Return general.architecture, empty where there is none."""
        return str(self.values.get("general.architecture", ""))

    def get(self, key: str) -> Any:
        """Return the value of a key, which may begin with "{arch}."; None where there is none."""
        return self.values.get(key.replace("{arch}", self.architecture))


class _Bytes:
    """The file from a place on; every read is bounded by what is left."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place, self.end = data, 0, len(data)

    def take(self, size: int, what: str) -> int:
        """Return where `size` bytes begin, and go behind them."""
        if size > self.end - self.place:
            raise Damaged(f"{what} at byte {self.place} needs {size} bytes, but {self.end - self.place} are left")
        start, self.place = self.place, self.place + size
        return start

    def number(self, form: str, what: str) -> Any:
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form), what))[0]

    def text(self, what: str, most: int | None = None) -> str:
        size = self.number("<Q", f"length of {what}")
        if most is not None and size > most:
            raise Damaged(f"{what} at byte {self.place - 8} says it has {size} bytes; at most {most} can be right")
        start = self.take(size, what)
        try:
            return self.data[start : start + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"{what} at byte {start} is no UTF-8: {error.reason}") from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _BOOL:
            byte = self.number("<B", what)
            if byte > 1:
                raise Damaged(f"{what} is a truth value of {byte}; only 0 and 1 are")
            return bool(byte)
        if kind == _TEXT:
            return self.text(what)
        if kind != _LIST or depth >= MOST_NESTING:
            raise Damaged(f"{what} has type {kind}, which GGUF does not know (lists are at most {MOST_NESTING} deep)")
        return self.items(what, depth)

    def items(self, what: str, depth: int) -> list[Any]:
        kind, count = self.number("<I", f"type of {what}"), self.number("<Q", f"length of {what}")
        smallest = struct.calcsize(_SCALARS[kind]) if kind in _SCALARS else {_BOOL: 1, _TEXT: 8, _LIST: 12}.get(kind, 1)
        if count * smallest > self.end - self.place:
            raise Damaged(f"{what} says it has {count} entries, but only {self.end - self.place} bytes are left")
        if kind in _SCALARS:
            start = self.take(count * smallest, what)
            return list(struct.unpack_from(f"<{count}{_SCALARS[kind][1]}", self.data, start))
        return [self.value(kind, f"entry {i} of {what}", depth + 1) for i in range(count)]


@contextmanager
def _opened(path: Path) -> Iterator[_Bytes]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise Damaged("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Bytes(data)


def read_container(path: Path) -> Container:
    """Return the frame of a file. Raises Damaged with what is wrong."""
    with _opened(path) as source:
        magic = source.data[source.take(4, "magic") : 4]
        if magic != b"GGUF":
            raise Damaged(f"it starts with {magic!r}, not with GGUF")
        version = source.number("<I", "version")
        if version not in VERSIONS:
            raise Damaged(f"version is {version}; {' and '.join(map(str, VERSIONS))} are known (little-endian)")
        num_tensors, num_values = source.number("<Q", "number of tensors"), source.number("<Q", "number of values")
        left = source.end - source.place
        # A name's length, a number of dimensions, a type and a place; a key's length, a type and a byte.
        if num_tensors * 24 + num_values * 13 > left:
            raise Damaged(f"it says it has {num_tensors} tensors and {num_values} values, but only {left} bytes follow")
        values = _read_values(source, num_values)
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise Damaged(f"general.alignment is {alignment!r}; expected a power of two, 8 or more")
        heads = [_read_head(source) for _ in range(num_tensors)]
        begin = -(-source.place // alignment) * alignment
        tensors = _placed(heads, begin, alignment, source.end)
        return Container(path, version, alignment, values, tensors)


def _read_values(source: _Bytes, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i in range(count):
        key = source.text(f"key {i}", MOST_KEY)
        if not key or key in values:
            raise Damaged(f"key {i} is {key!r}, which is empty or there already")
        values[key] = source.value(source.number("<I", f"type of {key}"), key)
    return values


_Head = tuple[str, tuple[int, ...], int, int]


def _read_head(source: _Bytes) -> _Head:
    name = source.text("name of a tensor", MOST_NAME - 1)
    dimensions = source.number("<I", f"dimensions of {name}")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise Damaged(f"{name!r} says it has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} can be right")
    shape = tuple(source.number("<Q", f"size of {name}") for _ in range(dimensions))
    if not all(shape):
        raise Damaged(f"{name!r} has the shape {shape}, which holds nothing")
    kind, place = source.number("<I", f"type of {name}"), source.number("<Q", f"place of {name}")
    return name, tuple(reversed(shape)), kind, place


def _placed(heads: list[_Head], begin: int, alignment: int, end: int) -> dict[str, Stored]:
    """Return the tensors with their places in the file, which must not overlap and must fill it."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {kind.value: kind for kind in GGMLQuantizationType}
    found: dict[str, Stored] = {}
    for name, shape, kind, place in heads:
        if name in found:
            raise Damaged(f"there are two tensors called {name!r}")
        if kind not in known:
            raise Damaged(f"{name!r} has number format {kind}, which is not known")
        block, block_bytes = GGML_QUANT_SIZES[known[kind]]
        if shape[-1] % block:
            raise Damaged(f"{name!r} has rows of {shape[-1]}, no multiple of the {block} that {known[kind].name} needs")
        if place % alignment:
            raise Damaged(f"{name!r} begins at {place}, no multiple of the alignment {alignment}")
        size, start = prod(shape) // block * block_bytes, begin + place
        if start + size > end:
            raise Damaged(f"{name!r} would end at byte {start + size}, but the file has {end}; it is cut off")
        found[name] = Stored(name, shape, known[kind].name, start, size)
    _check_places(sorted(found.values(), key=lambda each: each.start), begin, alignment, end)
    return found


def _check_places(tensors: list[Stored], begin: int, alignment: int, end: int) -> None:
    last, before = begin, "the header"
    for each in tensors:
        if each.start < last:
            raise Damaged(f"{each.name!r} overlaps {before!r}")
        if each.start - last >= alignment:
            raise Damaged(f"{each.start - last} bytes between {before!r} and {each.name!r} belong to nothing")
        last, before = each.start + each.size, each.name
    if end - last >= alignment:
        raise Damaged(f"{end - last} bytes behind the last tensor belong to nothing")


def read_bytes(container: Container, stored: Stored) -> Any:
    """Return the bytes of a tensor, a numpy array of bytes that is read from the file when it is used."""
    import numpy as np

    return np.memmap(container.path, dtype=np.uint8, mode="r", offset=stored.start, shape=(stored.size,))


# ---- checks

LIMIT = "magic, version and alignment known; tensors inside the file, side by side, nothing else"


def check_container(path: Path) -> tuple[Check, Container | None]:
    """Read the frame with our own reader; the second value is None where that is not possible."""
    try:
        container = read_container(path)
    except Damaged as error:
        return Check("container", False, str(error), LIMIT), None
    numbers = {"tensors": len(container.tensors), "values": len(container.values), "bytes": path.stat().st_size}
    found = f"version {container.version}, {numbers['tensors']} tensors, {numbers['values']} values"
    return Check("container", True, found, LIMIT, numbers), container


def check_reread(container: Container) -> Check:
    """Read the same file with the gguf package, and compare what it sees."""
    limit = "the gguf package sees the same keys, tensors, shapes and places"
    reader = _reader(container.path)
    theirs = {
        t.name: (tuple(int(n) for n in reversed(t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in reader.tensors
    }
    ours = {t.name: (t.shape, t.type, t.start, t.size) for t in container.tensors.values()}
    other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    keys = {key for key in reader.fields if not key.startswith("GGUF.")} ^ container.values.keys()
    wrong = [*other, *sorted(keys)]
    if wrong:
        return Check("reread", False, f"{len(wrong)} differ, the first is {wrong[0]}", limit)
    return Check("reread", True, f"{len(ours)} tensors and {len(container.values)} values are equal", limit)


def _reader(path: Path) -> Any:
    """Return the gguf package's reader; lists of texts, which it takes apart for many seconds, are passed over."""
    from gguf import GGUFReader
    from gguf.constants import GGUFValueType

    class Quick(GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            data: Any = self.data
            kind, count = struct.unpack_from("<IQ", data, orig_offs)
            if kind != GGUFValueType.STRING:
                return super()._get_field_parts(orig_offs, raw_type)
            place = orig_offs + 12
            for _ in range(count):
                place += 8 + struct.unpack_from("<Q", data, place)[0]
            return place - orig_offs, [data[orig_offs:place]], [0], [GGUFValueType.ARRAY, GGUFValueType.STRING]

    return Quick(path)
