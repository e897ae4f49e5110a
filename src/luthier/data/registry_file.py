"""dataset_info.json: names of data sets, and where the rows of each are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError
from luthier.core.hub import look_for_hub
from luthier.core.log import first_line, printable
from luthier.core.registry import did_you_mean

REGISTRY_FILE = "dataset_info.json"
REMOTE, ONLINE = "REMOTE:", "ONLINE"
"""What dataset_dir begins with when the registry is on the hub; what it is when every name is a hub data set."""

_DOWNLOAD = "rows are read from files and the Hugging Face hub; download them and name the file as file_name"
_ELSEWHERE = {
    "script_url": "it is code that would run on this machine; write its rows to a file and name that as file_name",
    "ms_hub_url": _DOWNLOAD,
    "om_hub_url": _DOWNLOAD,
    "cloud_file_name": _DOWNLOAD,
}
"""Source of an entry that is not read -> why, and what to do."""
_KNOWN_KEYS = [
    "file_name",
    "hf_hub_url",
    *_ELSEWHERE,
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
]
_TYPES: dict[str, tuple[type, str]] = {
    "ranking": (bool, "true or false"),
    "columns": (dict, "an object"),
    "tags": (dict, "an object"),
    "num_samples": (int, "a whole number"),
    "file_name": (str, "text"),
    "hf_hub_url": (str, "text"),
    "formatting": (str, "text"),
    "subset": (str, "text"),
    "split": (str, "text"),
    "folder": (str, "text"),
}


@dataclass(frozen=True, slots=True)
class Shelf:
    """The entries of a registry and the folder that their files lie in."""

    entries: Mapping[str, Any]
    folder: Path
    where: str
    """The registry, as messages name it."""


def open_shelf(place: str | Mapping[str, Any]) -> Shelf:
    """Return the entries that `dataset_dir` leads to; none where a folder has no such file. Raises DataError."""
    if not isinstance(place, str):
        return Shelf(place, Path(), "dataset_dir")
    if place.startswith(REMOTE):
        path = _remote(place.removeprefix(REMOTE))
        return Shelf(_read(path), path.parent, f"{place}/{REGISTRY_FILE}")
    path = Path(place).expanduser()
    path = path if path.suffix == ".json" and path.is_file() else path / REGISTRY_FILE
    return Shelf(_read(path) if path.is_file() else {}, path.parent, str(path))


def _remote(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    look_for_hub()
    try:
        return Path(hf_hub_download(name, REGISTRY_FILE, repo_type="dataset"))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        message = f"dataset_dir: {REGISTRY_FILE} of the hub data set {printable(name)}: {first_line(error)}"
        raise DataError(message, code="data_missing") from error


def _read(path: Path) -> dict[str, Any]:
    return entries_of(path.read_bytes(), str(path))


def entries_of(content: bytes, where: str) -> dict[str, Any]:
    """Return the entries of a registry; `where` names it in messages. Raises DataError."""
    try:
        entries = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise DataError(f"{where}: expected an object of entries, found {printable(entries, 40)}")
    return entries


def check_entry(entry: Any, where: str) -> None:
    """Raise DataError for an entry that cannot be read as it stands."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, found {printable(entry)}")
    unknown = [key for key in entry if key not in _KNOWN_KEYS]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}{did_you_mean(unknown[0], _KNOWN_KEYS)}")
    for key, (kind, wanted) in _TYPES.items():
        if entry.get(key) is not None and type(entry[key]) is not kind:
            raise DataError(f"{where}: {key}: expected {wanted}, found {printable(entry[key])}")
    if entry.get("hf_hub_url") or entry.get("file_name"):
        return
    named = next((key for key in _ELSEWHERE if entry.get(key)), None)
    if named is not None:
        raise DataError(f"{where}: {named} is not read: {_ELSEWHERE[named]}")
    raise DataError(f"{where}: needs file_name or hf_hub_url")
