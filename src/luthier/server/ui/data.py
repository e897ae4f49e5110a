"""Data sets: the list of all, and how the columns of one are read."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from luthier.core.errors import DataError, LuthierError
from luthier.core.log import printable
from luthier.core.paths import write_whole
from luthier.data.audit_files import kept_audit
from luthier.data.formats import alpaca
from luthier.data.registry_file import REGISTRY_FILE, check_entry
from luthier.data.row_index import KINDS
from luthier.data.rows import format_of
from luthier.data.sources import Source
from luthier.server.ui.failures import Refused
from luthier.server.ui.roots import EXAMPLE
from luthier.server.ui.sets import Found, files, find_set, is_name, shelf_of
from luthier.server.ui.shapes.data import DataSet, DataSets, Mapping
from luthier.server.ui.uploads import display_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luthier.server.ui.roots import Roots
    from luthier.server.ui.state import State

ROWS_LOOKED_AT = 20
_changing = threading.Lock()


def list_sets(roots: Roots) -> DataSets:
    """Return the data sets of every data folder: those that its dataset_info.json names, then its other files."""
    names = display_names(roots)
    found = [each for folder in roots.of("data") if folder.is_dir() for each in _of_folder(roots, folder, names)]
    return DataSets(datasets=found)


def _of_folder(roots: Roots, folder: Path, names: dict[str, str]) -> Iterator[DataSet]:
    try:
        entries = shelf_of(roots, folder).entries
    except LuthierError:
        entries = {}  # its files are still there; whoever names an entry is told what is wrong
    taken: set[str] = set()
    for name, entry in entries.items():
        if isinstance(entry, dict):
            file = str(entry.get("file_name") or "")
            taken.add(file)
            source = names.get(file, file) or str(entry.get("hf_hub_url") or "")
            yield _described(roots, name, folder, source, file, entry)
    for path in sorted(folder.iterdir()):
        is_rows = path.suffix in KINDS and path.name not in (REGISTRY_FILE, *taken) and is_name(path.name)
        if is_rows and path.is_file():
            shown = names.get(path.name, path.name)
            yield _described(roots, path.name, folder, shown, path.name, {})


def _described(roots: Roots, name: str, folder: Path, source: str, file: str, entry: dict[str, Any]) -> DataSet:
    path = (folder / file).resolve()
    here = bool(file) and path.is_relative_to(folder) and path.is_file()
    audit = kept_audit(path) if here else None
    facts = path.stat() if here else None
    return DataSet(
        name=name,
        folder=str(folder),
        source=source,
        format=str(entry.get("formatting", "alpaca")) if entry else "auto",
        rows=_counted(path, roots) if here else None,
        bytes=facts.st_size if facts else None,
        modified=facts.st_mtime if facts else None,
        audit="unknown" if audit is None or audit.is_stale() else audit.badge(),  # pyright: ignore[reportArgumentType]
        uploaded=folder == roots.uploads,
        packaged=folder == EXAMPLE,
        pairs=entry.get("ranking") is True,
    )


def _counted(path: Path, roots: Roots) -> int | None:
    """Return how many rows a file has; None while they are counted, and for what cannot be read."""
    try:
        return files.open(path, roots.open_data).total if path.suffix in KINDS else None
    except (LuthierError, OSError):
        return None


def mapping_of(found: Found) -> Mapping:
    """Return how the columns of a data set are read: as its entry says, or as its first rows tell."""
    if found.entry is not None:
        entry = dict(found.entry)
        columns = {str(role): str(name) for role, name in dict(entry.get("columns") or {}).items()}
        return Mapping(format=str(entry.get("formatting", "alpaca")), columns=columns, entry=entry)
    rows = [row.value for row in found.rows().rows(0, ROWS_LOOKED_AT) if not row.broken]
    row = rows[0] if rows else {}
    pairs = "chosen" in row and "rejected" in row
    kind = "pair" if pairs else "tagged" if "kto_tag" in row else "answer"
    format_name = format_of(row, Source(name=found.name, path=found.path), kind) if row else "alpaca"
    columns = {role: name for role, name in _USUAL[format_name].items() if name in row}
    entry: dict[str, Any] = {"file_name": found.path.name, "formatting": format_name, "columns": columns}
    return Mapping(format=format_name, columns=columns, entry={**entry, "ranking": True} if pairs else entry)


_MORE = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag", "system": "system", "tools": "tools"}
_USUAL: dict[str, dict[str, str]] = {
    "alpaca": {**alpaca.COLUMNS, **_MORE},
    "sharegpt": {"messages": "conversations", **_MORE},
    "openai": {"messages": "messages", "prompt": "prompt", "completion": "completion", **_MORE},
    "text": {"prompt": "text"},
}
"""Format -> roles and the columns that usually have them."""


def write_mapping(roots: Roots, found: Found, asked: Mapping) -> Mapping:
    """Write an entry of dataset_info.json in the folder of uploads; elsewhere it is the owner's to change."""
    if found.folder != roots.uploads:
        said = f"{found.folder / REGISTRY_FILE} is not the page's to write; copy the entry into it yourself"
        raise Refused(403, "data_not_uploaded", said)
    entry = {**asked.entry, "file_name": found.path.name, "formatting": asked.format, "columns": asked.columns}
    check_entry(entry, f"entry {found.name!r}")
    _check_columns(found, asked.columns)
    path = found.folder / REGISTRY_FILE
    with _changing:
        entries = dict(shelf_of(roots, found.folder).entries)
        write_whole(path, json.dumps({**entries, found.name: entry}, ensure_ascii=False, indent=2) + "\n")
    return Mapping(format=asked.format, columns=asked.columns, entry=entry)


def _check_columns(found: Found, columns: dict[str, str]) -> None:
    there = {key for row in found.rows().rows(0, ROWS_LOOKED_AT) if not row.broken for key in row.value}
    unknown = [name for name in columns.values() if name not in there]
    if unknown and there:
        raise DataError(f"no row has the column {printable(unknown[0])}; there are: {', '.join(sorted(there)[:12])}")


def routes(state: State) -> APIRouter:
    """List data sets; read and write how their columns are read."""
    router = APIRouter(tags=["data"], prefix="/data")

    @router.get("", summary="All data sets")
    def every() -> DataSets:
        return list_sets(state.roots)

    @router.get("/mapping", summary="How columns are read")
    def mapping(dataset: str, folder: str) -> Mapping:
        return mapping_of(find_set(state.roots, dataset, folder))

    @router.put("/mapping", summary="Change how the columns of an uploaded file are read")
    def change_mapping(dataset: str, folder: str, body: Mapping) -> Mapping:
        return write_mapping(state.roots, find_set(state.roots, dataset, folder), body)

    return router
