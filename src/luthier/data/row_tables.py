"""Rows of parquet and arrow files, by place."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.log import printable

if TYPE_CHECKING:
    from pathlib import Path

ROWS_AT_ONCE = 1024


class Table:
    """A table that is read in portions; the last portion is kept, because pages follow each other."""

    def __init__(self, file: Any, sizes: list[int], read: Any) -> None:
        self._file, self._read = file, read
        self._starts = [0, *accumulate(sizes)]
        self._kept: tuple[int, int, Any] | None = None

    @property
    def num_rows(self) -> int:
        """Return how many rows there are."""
        return self._starts[-1]

    def rows(self, start: int, count: int) -> list[dict[str, Any]]:
        """Return rows `start`, `start` + 1, ..., at most `count`."""
        found: list[dict[str, Any]] = []
        end = min(start + count, self.num_rows)
        while start + len(found) < end:
            at = start + len(found)
            first, portion = self._portion(at)
            found += portion.slice(at - first, end - at).to_pylist()
        return found

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


def open_table(path: Path) -> Table:
    """Open a parquet or arrow file. Raises DataError where it is damaged."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        if path.suffix == ".parquet":
            file = parquet.ParquetFile(path, memory_map=True)
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            return Table(file, groups, lambda f, i: f.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[i]))
        file = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        sizes = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
        return Table(file, sizes, lambda f, i: [f.get_batch(i)])
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as a table: {printable(error, 200)}", code="data_kind") from error
