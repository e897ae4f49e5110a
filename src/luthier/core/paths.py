"""Folders and files of our own: the cache, and writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from luthier.core.faults import fault_point


def cache_folder(*parts: str) -> Path:
    """Return a folder under $LUTHIER_CACHE, else under the user's cache folder. It is not created."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LUTHIER_CACHE") or home / "luthier").joinpath(*parts)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` so that readers see the old or the new file, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fault_point(f"write.{path.name}")
    temporary.replace(path)
