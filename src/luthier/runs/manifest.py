"""The manifest of a checkpoint: size and SHA-256 of every file, written last and checked first."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import luthier
from luthier.core.faults import fault_point
from luthier.core.paths import sync_folder
from luthier.runs.store import checkpoint_step

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1


def seal(folder: Path, step: int) -> None:
    """Sync every file of `folder` and write the manifest."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        fault_point("checkpoint.synced")
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    manifest = {
        "format": FORMAT,
        "step": step,
        "luthier": luthier.__version__,
        "torch": version("torch"),
        "files": files,
    }
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        fault_point("checkpoint.manifest")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def damage(path: Path, *, hashes: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file has the size and hash of the manifest.

    Without `hashes` no file is read: sizes alone are looked at.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return "manifest.json is missing or damaged"
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')} is not known to this version"
    if manifest.get("step") != checkpoint_step(path) and checkpoint_step(path) is not None:
        return f"the manifest is of step {manifest.get('step')}"
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, {facts['bytes']} expected"
        if hashes and _hash(file) != facts["sha256"]:
            return f"{name} does not have the hash of the manifest"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
