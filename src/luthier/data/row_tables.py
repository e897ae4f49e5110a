"""Rows of parquet and arrow files, by place."""

from __future__ import annotations

import mmap
import threading
import weakref
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO

from luthier.core.errors import DataError
from luthier.core.log import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS_AT_ONCE = 1024


class Table:
    """A table that is read in portions; the last portion is kept, because pages follow each other."""

    def __init__(self, file: Any, sizes: list[int], read: Any) -> None:
        self._file, self._read = file, read
        self._starts = [0, *accumulate(sizes)]
        self._kept: tuple[int, int, Any] | None = None
        self._lock = threading.Lock()

    @property
    def num_rows(self) -> int:
        """Return how many rows there are."""
        return self._starts[-1]

    def each(self, start: int, count: int) -> Iterator[dict[str, Any]]:
        """Yield rows `start`, `start` + 1, ..., at most `count`; few of them are in memory at a time."""
        end = min(start + count, self.num_rows)
        while start < end:
            with self._lock:
                first, portion = self._portion(start)
            rows = portion.slice(start - first, min(end - start, ROWS_AT_ONCE)).to_pylist()
            start += len(rows)
            yield from rows

    def _portion(self, place: int) -> tuple[int, Any]:
        """Return the portion that holds a row, and the place of its first row."""
        if self._kept is None or not self._kept[0] <= place < self._kept[1]:
            group = next(i for i, start in enumerate(self._starts[1:]) if place < start)
            first = self._starts[group]
            for portion in self._read(self._file, group):
                if place < first + portion.num_rows:
                    self._kept = (first, first + portion.num_rows, portion)
                    break
                first += portion.num_rows
        assert self._kept is not None
        return self._kept[0], self._kept[2]


def open_table(file: BinaryIO, name: str) -> Table:
    """Read what a parquet or arrow file called `name` holds; it is kept open. Raises DataError where it is damaged."""
    import pyarrow

    try:
        table = _parquet(file) if name.endswith(".parquet") else _arrow(file)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        file.close()
        raise DataError(f"{name} cannot be read as a table: {printable(error, 200)}", code="data_kind") from error
    weakref.finalize(table, file.close)
    return table


def _parquet(file: BinaryIO) -> Table:
    import pyarrow.parquet as parquet

    found = parquet.ParquetFile(file)
    groups = [found.metadata.row_group(i).num_rows for i in range(found.metadata.num_row_groups)]
    return Table(found, groups, lambda f, i: f.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[i]))


def _arrow(file: BinaryIO) -> Table:
    import pyarrow

    # The rows of a portion are counted without reading what they hold.
    whole = pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    found = pyarrow.ipc.open_file(pyarrow.BufferReader(whole))
    sizes = [found.get_batch(i).num_rows for i in range(found.num_record_batches)]
    return Table(found, sizes, lambda f, i: [f.get_batch(i)])
