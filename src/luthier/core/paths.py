"""Folders and files of our own: the cache, and writing a file whole or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.faults import fault_point

if TYPE_CHECKING:
    from collections.abc import Generator


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


def beside(path: Path) -> Path:
    """Return a name next to `path` that no other process or machine uses, for what will be renamed to `path`."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a name to write to; it becomes `path` when the block ends, and vanishes when the block fails.

    Several processes may do this at once for the same `path`: each writes a file of its own, the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` so that readers see the old or the new file, never half of one."""
    with replacing(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fault_point(f"write.{path.name}")
