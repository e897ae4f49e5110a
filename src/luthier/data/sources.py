"""Names and files -> rows, each with the place where it stands.

json, jsonl, csv and txt are read here, because a message must name the line; parquet and arrow go through pyarrow,
hub data sets through `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.findings import Finding
from luthier.core.hub import look_for_hub
from luthier.core.log import printable
from luthier.core.registry import did_you_mean
from luthier.data.registry_file import ONLINE, Shelf, check_entry, open_shelf
from luthier.data.row_scan import PART_BYTES

if TYPE_CHECKING:
    from luthier.config.schema import DataConfig

LARGEST_LINE_BYTES = 1 << 30
"""A longer line is no row, and is not held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set: where its rows are and how to read them."""

    name: str
    path: Path | None = None
    hub: str | None = None
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    """Folder inside the hub data set."""
    formatting: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    ranking: bool | None = None
    """Rows hold a chosen and a rejected answer; None: their columns tell."""
    max_rows: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or the finding that says why there is none."""

    where: str
    value: Mapping[str, Any] | None = None
    finding: Finding | None = None


def find_sources(names: tuple[str, ...], config: DataConfig, shelf: Shelf | None = None) -> list[Source]:
    """Resolve names in dataset_info.json and paths. Raises DataError listing every name that is neither.

    `shelf`: the registry, where it is known already.
    """
    if shelf is None and config.dataset_dir == ONLINE:
        return [Source(name=name, hub=name, **_as_set(config)) for name in names]
    shelf, problems, sources = shelf or open_shelf(config.dataset_dir), [], []
    for name in names:
        try:
            sources.append(_find(name, config, shelf))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems), code="data_missing")
    return sources


def _as_set(config: DataConfig) -> dict[str, Any]:
    """Return how rows are read that no entry describes."""
    return {
        "formatting": config.formatting,
        "columns": config.columns,
        "tags": config.tags,
        "ranking": config.pairs,
        "max_rows": config.max_samples,
    }


def _find(name: str, config: DataConfig, shelf: Shelf) -> Source:
    if name in shelf.entries:
        return _from_entry(name, shelf.entries[name], config, shelf)
    path = Path(name).expanduser()
    for candidate in (path, shelf.folder / name):
        if candidate.exists() and (candidate.suffix or candidate.is_dir()):
            return Source(name=name, path=candidate, **_as_set(config))
    here = sorted(shelf.entries) + (sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else [])
    raise DataError(
        f"data set {printable(name)} is neither a file ({path.absolute()}) nor a name in {shelf.where}"
        f"{did_you_mean(name, here)}"
    )


def _from_entry(name: str, entry: Any, config: DataConfig, shelf: Shelf) -> Source:
    where = f"{shelf.where}: entry {name!r}"
    check_entry(entry, where)
    common: dict[str, Any] = {
        "name": name,
        "formatting": entry.get("formatting", "alpaca"),
        "columns": entry.get("columns", {}),
        "tags": entry.get("tags", {}),
        "ranking": entry.get("ranking", False),
        "max_rows": min(filter(None, (config.max_samples, entry.get("num_samples", 0))), default=0),
    }
    parts = {"subset": entry.get("subset"), "split": entry.get("split", "train"), "folder": entry.get("folder")}
    if entry.get("hf_hub_url"):
        return Source(hub=entry["hf_hub_url"], **parts, **common)
    root = shelf.folder.resolve()
    path = (root / entry["file_name"]).resolve()
    if not path.is_relative_to(root):
        raise DataError(f"{where}: {path} lies outside {root}; give the file by its path as `dataset` instead")
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise DataError(f"{where}: {path} does not exist{near}")
    return Source(path=path, **common)


def read_rows(source: Source) -> Iterator[Row]:
    """Yield every row of a source in order; unreadable ones carry a finding instead of a value."""
    rows = _hub_rows(source) if source.hub else _path_rows(source)
    for number, row in enumerate(rows):
        if source.max_rows and number >= source.max_rows:
            return
        yield row


def _hub_rows(source: Source) -> Iterator[Row]:
    import datasets

    look_for_hub()
    try:
        rows: Any = datasets.load_dataset(
            source.hub or "", source.subset, data_dir=source.folder, split=source.split, streaming=True
        )
    except (OSError, ValueError) as error:
        raise DataError(f"hub data set {source.hub!r} cannot be read: {printable(error, 300)}") from error
    for number, row in enumerate(rows, 1):
        yield Row(f"{source.hub}:{number}", row)


def _path_rows(source: Source) -> Iterator[Row]:
    assert source.path is not None
    files = sorted(p for p in source.path.rglob("*") if p.suffix in READERS) if source.path.is_dir() else [source.path]
    if not files:
        raise DataError(f"{source.path} holds no {', '.join(READERS)} file")
    for file in files:
        if file.suffix not in READERS:
            raise DataError(f"{file}: files may be {', '.join(READERS)}; this is {file.suffix or 'without a suffix'}")
        if not file.is_file():
            raise DataError(f"{file} is no regular file")
        yield from READERS[file.suffix](file)


def _bad(where: str, kind: str, message: str) -> Row:
    return Row(where, finding=Finding(kind=kind, level="error", where=where, message=message))


def _decoded(raw: bytes, where: str) -> str | Row:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else _guess(raw)
        remedy = f"perhaps {guess}: iconv -f {guess} -t UTF-8" if guess else "convert it with iconv"
        return _bad(
            where, "not_utf8", f"expected UTF-8, found byte 0x{raw[error.start]:02x} at {error.start}; {remedy}"
        )


def _guess(raw: bytes) -> str | None:
    for encoding in ("gb18030", "latin-1"):
        try:
            raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding.upper()
    return None


def _lines(path: Path) -> Iterator[tuple[str, bytes | Row]]:
    """Yield the place of each line, and the line with its end; of one that is too large, the row that says so."""
    with path.open("rb") as file:  # bytes split at \n only; text mode would also split at U+2028 inside strings
        number = 0
        while raw := file.readline(LARGEST_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) <= LARGEST_LINE_BYTES:
                yield where, raw
                continue
            while not raw.endswith(b"\n") and (raw := file.readline(PART_BYTES)):
                pass
            yield where, _bad(where, "too_large", f"a line of more than {LARGEST_LINE_BYTES} bytes; one row a line "
                              "is expected: are there line breaks between the rows?")  # fmt: skip


def _jsonl(path: Path) -> Iterator[Row]:
    for where, raw in _lines(path):
        if isinstance(raw, Row):
            yield raw
        elif raw.strip():
            text = _decoded(raw.rstrip(b"\r\n"), where)
            yield text if isinstance(text, Row) else _json_row(text, where, _ENDS[raw.endswith(b"\n")])


_ENDS = {
    True: "the line ends inside a value: a row is one line, and a line break within a text is written as \\n",
    False: "the file ends inside a value: was the copy complete?",
}
"""Whether a line has an end -> what is said where a value has none."""


def _json_row(text: str, where: str, at_end: str) -> Row:
    try:
        value = json.loads(text)
    except ValueError as error:
        column = getattr(error, "colno", 1)
        has_no_end = "Unterminated" in str(error) or getattr(error, "pos", 0) >= len(text.rstrip())
        hint = f"; {at_end}" if has_no_end else ""
        return _bad(where, "broken_json", f"expected one JSON object, found {error.args[0]} (column {column}){hint}")
    except RecursionError:
        return _bad(where, "broken_json", "JSON is nested too deeply")
    return _object_row(value, where)


def _object_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        return _bad(where, "not_an_object", f"expected a JSON object, found {printable(value, 40)}")
    return Row(where, value)


def _json_array(path: Path) -> Iterator[Row]:
    text = _decoded(path.read_bytes(), f"{path}:1")
    if isinstance(text, Row):
        yield text
        return
    decoder, at, line, counted = json.JSONDecoder(), _skip_blank(text, 0), 1, 0
    if at < len(text) and text[at] == "{":
        yield from _jsonl(path)  # many people name JSON lines .json
        return
    if at >= len(text) or text[at] != "[":
        yield _bad(f"{path}:1", "broken_json", f"expected a list of objects, found {printable(text[at : at + 20])}")
        return
    at = _skip_blank(text, at + 1)
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            wrong = line + text.count("\n", counted, getattr(error, "pos", at))
            yield _bad(
                f"{path}:{wrong}", "broken_json", f"not JSON: {printable(error)}; the rest of the file was not read"
            )
            return
        yield _object_row(value, where)
        at = _skip_blank(text, end)
        if at < len(text) and text[at] == ",":
            at = _skip_blank(text, at + 1)
        elif at < len(text) and text[at] != "]":
            line += text.count("\n", counted, at)
            yield _bad(f"{path}:{line}", "broken_json", f"expected a comma, found {printable(text[at : at + 20])}")
            return
    if at >= len(text):
        yield _bad(f"{path}:{line}", "broken_json", "the list is not closed: was the copy complete?")


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv(path: Path) -> Iterator[Row]:
    text = _decoded(path.read_bytes(), f"{path}:1")
    if isinstance(text, Row):
        yield text
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    start = 2
    try:
        for row in reader:
            where, start = f"{path}:{start}", reader.line_num + 1
            if None in row or None in row.values():
                given = len(row.get(None) or []) + sum(v is not None for k, v in row.items() if k is not None)  # pyright: ignore
                yield _bad(
                    where, "broken_csv", f"expected {len(reader.fieldnames or [])} fields, found {given}; quote commas"
                )
            else:
                yield Row(where, row)
    except csv.Error as error:
        yield _bad(f"{path}:{start}", "broken_csv", f"{error}; the rest of the file was not read")


def _table(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        if path.suffix == ".parquet":
            batches = parquet.ParquetFile(path).iter_batches()
        else:
            batches = iter(pyarrow.ipc.open_file(path).read_all().to_batches())
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", row)
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield _bad(f"{path}:1", "broken_table", f"cannot be read: {printable(error, 200)}")


def _txt(path: Path) -> Iterator[Row]:
    for where, raw in _lines(path):
        text = raw if isinstance(raw, Row) else _decoded(raw.rstrip(b"\r\n"), where)
        if isinstance(text, Row):
            yield text
        elif text.strip():
            yield Row(where, {"text": text})


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _json_array,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _table,
    ".arrow": _table,
    ".txt": _txt,
}
