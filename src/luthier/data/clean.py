"""A copy of a data file without the rows that an audit found fault with; what stays is copied byte by byte."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.paths import beside
from luthier.core.registry import did_you_mean
from luthier.data.audit import AuditReport
from luthier.data.audit_files import KeptAudit, kept_audit
from luthier.data.row_index import TABLES, RowFile, open_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from luthier.data.row_index import Opener

MOST_EXAMPLES = 20


@dataclass(slots=True)
class Cleaned:
    """Before and after."""

    before: int
    after: int
    dropped: dict[str, int]
    """Kind -> rows that have it; a row may have several."""
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """{line, kind, row} of some that go."""
    written: str | None = None


def audit_for_cleaning(path: Path) -> KeptAudit:
    """Return the last audit of a file. Raises DataError where there is none, or the file has changed since."""
    audit = kept_audit(path)
    if audit is None or audit.is_stale():
        why = "no audit of it is known" if audit is None else "it has changed since its last audit"
        raise DataError(f"{path}: {why}; run `luthier data audit` with settings that name it", code="data_no_audit")
    return audit


def clean(
    path: Path,
    kinds: Sequence[str],
    out: Path | None = None,
    *,
    opener: Opener = open_plain,
    open_folder: Opener | None = None,
) -> Cleaned:
    """Leave out rows with findings of `kinds`; write the others to `out`, which is not there yet.

    Without `out` nothing is written. The file is opened by `opener`, the folder of `out` by `open_folder`. Raises
    DataError for kinds that the audit did not find, for rows behind one that is too large, and for a file that is there
    already.
    """
    audit = audit_for_cleaning(path)
    report = AuditReport.from_dict(audit.report)
    unknown = [kind for kind in kinds if kind not in report.places]
    if unknown or not kinds:
        found = ", ".join(report.places) or "nothing"
        what = (
            f"no row has {unknown[0]!r}{did_you_mean(unknown[0], list(report.places))}" if unknown else "no kind given"
        )
        raise DataError(f"{path}: {what}; the audit found: {found}", code="data_no_such_finding")
    if out is not None and out.suffix != path.suffix:
        raise DataError(f"{out} would hold rows as {path.suffix}; give it that ending", code="data_kind_of_file")
    file = RowFile(path, opener)
    file.build()
    file.check_whole()
    gone: dict[int, str] = {}
    for kind in kinds:
        for row in report.places[kind]:
            gone.setdefault(row, kind)
    total = file.total or 0
    found = Cleaned(total, total - len(gone), {kind: len(report.places[kind]) for kind in kinds})
    for row in sorted(gone)[:MOST_EXAMPLES]:
        found.examples += [{"line": s.line, "kind": gone[row], "row": s.value} for s in file.rows(row, 1)]
    if out is not None:
        folder = (open_folder or _open_folder)(out.parent)
        try:
            _write(file, gone, out, folder)
        finally:
            os.close(folder)
        found.written = str(out)
    return found


def _open_folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is no folder; make it first", code="data_missing") from error


def _write(file: RowFile, gone: dict[int, str], out: Path, folder: int) -> None:
    """Write the rows that stay, whole or not at all. `folder`: descriptor of the folder of `out`."""
    temporary = beside(out).name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as target:
            _WRITERS[file.path.suffix](file, gone, target)
            target.flush()
            os.fsync(target.fileno())
        # Unlike a rename it never replaces a file.
        os.link(temporary, out.name, src_dir_fd=folder, dst_dir_fd=folder)
    except FileExistsError:
        raise DataError(f"{out} is there already; give another name", code="data_exists") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _copy(
    file: RowFile, gone: dict[int, str], target: IO[bytes], *, before: bytes, between: bytes, after: bytes
) -> None:
    with file.open() as source:
        target.write(before)
        first, place = True, 0
        while entries := file.entries(place, 1024):
            for entry in entries:
                if place not in gone:
                    target.write(b"" if first else between)
                    target.writelines(file.parts(source, entry))
                    first = False
                place += 1
        target.write(b"" if first and not before else after)


def _lines(file: RowFile, gone: dict[int, str], target: IO[bytes]) -> None:
    _copy(file, gone, target, before=b"", between=b"\n", after=b"\n")


def _list(file: RowFile, gone: dict[int, str], target: IO[bytes]) -> None:
    with file.open() as source:
        is_list = source.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    marks = (b"[\n", b",\n", b"\n]\n") if is_list else (b"", b"\n", b"\n")
    _copy(file, gone, target, before=marks[0], between=marks[1], after=marks[2])


def _records(file: RowFile, gone: dict[int, str], target: IO[bytes]) -> None:
    entries = file.entries(0, 1)
    with file.open() as source:
        header = source.read(entries[0][0]) if entries else source.read()
    _copy(
        file, gone, target, before=header if header.endswith((b"\n", b"\r")) else header + b"\n", between=b"", after=b""
    )


def _table(file: RowFile, gone: dict[int, str], target: IO[bytes]) -> None:
    import pyarrow.parquet as parquet

    with file.open() as opened:
        source, place, writer = parquet.ParquetFile(opened), 0, None
        for batch in source.iter_batches():
            kept = batch.take([i for i in range(batch.num_rows) if place + i not in gone])
            place += batch.num_rows
            writer = writer or parquet.ParquetWriter(target, batch.schema)
            writer.write_batch(kept)
        (writer or parquet.ParquetWriter(target, source.schema_arrow)).close()


def _no_arrow(file: RowFile, gone: dict[int, str], target: IO[bytes]) -> None:
    raise DataError(f"{file.path}: arrow files are not written; convert it to parquet first", code="data_kind_of_file")


_WRITERS: dict[str, Callable[[RowFile, dict[int, str], IO[bytes]], None]] = {
    ".jsonl": _lines,
    ".txt": _lines,
    ".json": _list,
    ".csv": _records,
    **dict(zip(TABLES, (_table, _no_arrow), strict=True)),
}
