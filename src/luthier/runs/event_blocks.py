"""events.jsonl in blocks of columns: large ones through pyarrow, small and damaged ones line by line."""

from __future__ import annotations

import json
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice, starmap
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]
    Choice = npt.NDArray[np.bool_]

KINDS = ("train", "eval")
BLOCK_BYTES = 16 << 20
AHEAD = 2
"""Blocks that are read at the same time, where there are as many."""
ARROW_FROM_BYTES = 1 << 20
"""Smaller blocks are read line by line, without loading pyarrow."""
LONGEST_LINE_BYTES = 8 << 20
"""A longer line is no event."""
_BEGIN = b'"begin'
"""Without the quotation mark at its end, which would be found all over a block first."""
_NONFINITE = "nonfinite"


def _empty() -> Numbers:
    return np.empty(0, np.float64)


@dataclass
class Block:
    """Events of the kinds that have metrics, one place in each column an event; NaN where one has no number."""

    end: int
    """Byte behind the last whole line."""
    last_seq: int = 0
    damaged: int = 0
    """Lines that are no event."""
    begins: list[int] = field(default_factory=list[int])
    """Steps behind which the run began, or went on, before the events of this block."""
    step: Numbers = field(default_factory=_empty)
    mono: Numbers = field(default_factory=_empty)
    tokens: Numbers = field(default_factory=_empty)
    metrics: dict[str, Numbers] = field(default_factory=dict[str, "Numbers"])
    there: dict[str, Choice | None] = field(default_factory=dict[str, "Choice | None"])
    """Events that have the metric, be it as a number or as what is none; None: all."""


def read_blocks(path: Path, offset: int) -> Iterator[Block]:
    """Yield what stands behind a byte; half a line at the end is left for later."""
    pieces = _pieces(path, offset)
    first = list(islice(pieces, AHEAD))
    if len(first) < AHEAD:
        yield from starmap(_block, first)
        return
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = deque(pool.submit(_block, *piece) for piece in first)
        for piece in pieces:
            yield waiting.popleft().result()
            waiting.append(pool.submit(_block, *piece))
        for each in waiting:
            yield each.result()


def _pieces(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines and the byte behind them; nothing in place of a line that is longer than a block."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(BLOCK_BYTES):
            end = data.rfind(b"\n") + 1
            if end == 0:
                end = _longer(file, len(data))
                if end == 0:
                    return
                yield b"", offset + end
            else:
                yield from _split(data[:end], offset)
            offset += end
            file.seek(offset)


def _longer(file: Any, seen: int) -> int:
    """Return how many bytes a line has that is longer than a block; 0 while it is not complete."""
    while data := file.read(BLOCK_BYTES):
        place = data.find(b"\n")
        if place >= 0:
            return seen + place + 1
        seen += len(data)
    return 0


def _split(data: bytes, offset: int) -> Iterator[tuple[bytes, int]]:
    """Yield pieces of which each has a beginning of the run, if any, at its front, and the byte behind each."""
    begin = 0
    found = data.find(_BEGIN)
    while found >= 0:
        place = data.rfind(b"\n", 0, found) + 1
        if place > begin:
            yield data[begin:place], offset + place
        begin, found = place, data.find(_BEGIN, data.find(b"\n", found))
    yield data[begin:], offset + len(data)


def _block(data: bytes, end: int) -> Block:
    if not data:
        return Block(end, damaged=1)
    if len(data) >= ARROW_FROM_BYTES:
        found = _by_columns(data, end)
        if found is not None:
            return found
    return _by_lines(data, end)


def _by_lines(data: bytes, end: int) -> Block:
    block = Block(end)
    events: list[dict[str, Any]] = []
    for line in data.split(b"\n")[:-1]:
        event = parse(line)
        if event is None:
            block.damaged += bool(line.strip())
            continue
        seq, step = event.get("seq"), event.get("step")
        block.last_seq = max(block.last_seq, seq if isinstance(seq, int) else 0)
        if event.get("kind") == "begin" and isinstance(event.get("after"), int):
            block.begins.append(event["after"])
        if event.get("kind") in KINDS and _is_number(step) and math.isfinite(cast("float", step)):
            events.append(event)
    names = dict.fromkeys(
        name for event in events for name, value in event.items() if value is None or _is_number(value)
    )
    for name in names:
        there = np.array([name in event and (event[name] is None or _is_number(event[name])) for event in events])
        block.metrics[name] = np.array([_number(event.get(name)) for event in events], np.float64)
        block.there[name] = None if there.all() else there
    return _placed(block, len(events))


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line; None where there is none."""
    if len(line) > LONGEST_LINE_BYTES:
        return None
    try:
        found = json.loads(line.strip(b"\0 \r"))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    try:
        return float(value) if _is_number(value) and math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def _placed(block: Block, rows: int) -> Block:
    for name in ("step", "mono", "tokens"):
        setattr(block, name, block.metrics.get(name, np.full(rows, math.nan)))
    return block


def _by_columns(data: bytes, end: int) -> Block | None:
    """Return a block as pyarrow reads it; None where lines are not all of events, and have to be read one by one."""
    arrow: Any = import_module("pyarrow")
    reader: Any = import_module("pyarrow.json")
    if b"\0" in data:
        return None
    options: Any = reader.ReadOptions(block_size=BLOCK_BYTES // 4, use_threads=False)
    try:
        table: Any = reader.read_json(arrow.py_buffer(data), read_options=options)
    except arrow.ArrowInvalid:
        return None
    lines = int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))
    if len(table) != lines or not {"seq", "kind", "step"} <= {*table.column_names}:
        return None
    compute: Any = import_module("pyarrow.compute")

    def of_kind(*names: str) -> Choice:
        found = compute.is_in(table["kind"], value_set=arrow.array(names))
        return found.to_numpy(zero_copy_only=False).astype(bool)

    columns = {
        name: _column(table[name])
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_null(kind)
    }
    chosen = of_kind(*KINDS) & ~np.isnan(columns["step"])
    every = bool(chosen.all())
    block = Block(end, last_seq=int(np.nanmax(columns["seq"], initial=0)))
    after = columns["after"][of_kind("begin")] if "after" in columns else _empty()
    block.begins = [int(each) for each in after if not np.isnan(each)]
    gaps = _gaps(data, lines) if _NONFINITE in table.column_names else {}
    for name, values in columns.items():
        there = ~np.isnan(values)
        there[[place for place, missing in gaps.items() if name in missing]] = True
        block.metrics[name] = values if every else values[chosen]
        held = there if every else there[chosen]
        block.there[name] = None if held.all() else held
    return _placed(block, int(chosen.sum()))


def _column(chunked: Any) -> Numbers:
    arrow: Any = import_module("pyarrow")
    return chunked.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64, copy=False)


def _gaps(data: bytes, lines: int) -> dict[int, set[str]]:
    """Return which lines hold what is no number, and under which names: as a column, null and absent are the same."""
    found: dict[int, set[str]] = {}
    for place, line in enumerate(data.split(b"\n")[:lines]):
        if _NONFINITE.encode() in line:
            event = parse(line) or {}
            found[place] = {name for name, value in event.items() if value is None}
    return found
