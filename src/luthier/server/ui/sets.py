"""Names of data sets -> files below the data folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.config.schema import DataConfig
from luthier.core.errors import DataError
from luthier.core.log import printable
from luthier.data.registry_file import REGISTRY_FILE, Shelf, entries_of
from luthier.data.row_index import KINDS, RowFile, RowFiles
from luthier.data.sources import Source, find_sources
from luthier.runs.trash import is_one_name
from luthier.server.ui.failures import Refused, missing
from luthier.server.ui.roots import Roots

LONGEST_NAME_BYTES = 256
LARGEST_SHELF_BYTES = 64 << 20
files = RowFiles()
"""Files that somebody looks at, with their indexes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A data set that was asked for."""

    name: str
    folder: Path
    source: Source
    entry: Mapping[str, Any] | None
    """Its entry in dataset_info.json; None for a file that has none."""
    roots: Roots
    """The folders that it may lie in, however often it is opened."""

    @property
    def path(self) -> Path:
        """Return its file. Raises Refused (409) where its rows are elsewhere, or in several files."""
        path = self.source.path
        if path is None:
            raise Refused(
                409, "data_not_here", f"the rows of {self.name} are on the hub; download them to look at them"
            )
        if path.is_dir():
            raise Refused(409, "data_folder", f"{self.name} is a folder of files; look at them one by one")
        return path

    def rows(self) -> RowFile:
        """Return its rows. Raises Refused where its path leads out by now."""
        return files.open(self.path, self.roots.open_data)


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of one visible file."""
    return is_one_name(text) and len(os.fsencode(text)) < LONGEST_NAME_BYTES


def folder_of(roots: Roots, folder: str) -> Path:
    """Return a data folder by the name that the list of data sets gives it. Raises Refused."""
    found = roots.inside(folder, "data")
    if not found.is_dir():
        raise missing("folder", folder)
    return found


def shelf_of(roots: Roots, folder: Path) -> Shelf:
    """Return the entries of the dataset_info.json of a data folder. Raises DataError; Refused where it leads out."""
    path = folder / REGISTRY_FILE
    if not path.is_file():
        return Shelf({}, folder, str(path))
    with os.fdopen(roots.open_data(roots.inside(path, "data")), "rb") as file:
        content = file.read(LARGEST_SHELF_BYTES + 1)
    if len(content) > LARGEST_SHELF_BYTES:
        raise DataError(f"{path} has more than {LARGEST_SHELF_BYTES} bytes; keep rows in files that it names")
    return Shelf(entries_of(content, str(path)), folder, str(path))


def source_below(roots: Roots, name: str, config: DataConfig) -> Source:
    """Return what a name of `config.dataset_dir` leads to, its file without links. Raises Refused, DataError."""
    (source,) = find_sources((name,), config, shelf_of(roots, Path(str(config.dataset_dir))))
    return source if source.path is None else replace(source, path=roots.inside(source.path, "data"))


def find_set(roots: Roots, name: str, folder: str) -> Found:
    """Return a data set of a folder: a name in its dataset_info.json, or a file in it. Raises Refused, DataError."""
    root = folder_of(roots, folder)
    entries = shelf_of(roots, root).entries
    if name in entries:
        return Found(name, root, source_below(roots, name, DataConfig(dataset_dir=str(root))), entries[name], roots)
    path = roots.inside(root / name, "data") if is_name(name) else None
    if path is None or not path.exists() or path.name == REGISTRY_FILE:
        raise missing("data set", name)
    if path.is_file() and path.suffix not in KINDS:
        raise DataError(f"{printable(name)}: rows are read from {', '.join(KINDS)} files", code="data_kind_of_file")
    return Found(name, root, Source(name=name, path=path), None, roots)
