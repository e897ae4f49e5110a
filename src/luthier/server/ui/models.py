"""Models to begin with: short names, folders below the model roots, the hub's cache, and runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
from fastapi import APIRouter, Query

from luthier.core.log import first_line, printable
from luthier.models.aliases import ALIASES, installed_file
from luthier.models.glance import Glance, glance_at
from luthier.runs.store import is_run
from luthier.runs.trash import is_one_name
from luthier.server.ui.failures import missing
from luthier.server.ui.shapes.models import ModelRow, Models, TemplateFit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.server.ui.roots import Roots
    from luthier.server.ui.state import State

DEEPEST = 4
MOST_FOLDERS = 5000
"""So many folders are looked into below a root."""
_MARKS = ("config.json", "adapter_config.json")
TEMPLATE_SECONDS = 60.0
Name = Annotated[str, Query(min_length=1, max_length=1000)]
BYTES_PER_PARAMETER, BYTES_OF_A_TRAINING = 2.6, 1.5e9
"""A rough guess for LoRA: weights in 16 bits, gradients and state of the adapter, and short batches."""


def list_models(roots: Roots) -> Models:
    """Return every model that is known, without loading one; nothing is asked of the network."""
    found = [*_aliases(), *_folders(roots), *_cached(), *_runs(roots)]
    return Models(models=list({row.name: row for row in reversed(found)}.values())[::-1])


def look_at(roots: Roots, name: str) -> ModelRow:
    """Return one model by any name that settings take. Raises Refused (403, 404)."""
    row = next((row for row in [*_aliases(), *_cached()] if row.name == name), None)
    if row is not None:
        return row
    path = Path(os.path.expanduser(name)) if "\0" not in name else Path()
    is_path = path.is_absolute() or name.startswith((".", "~")) or (is_one_name(name) and (roots.runs / name).is_dir())
    if not is_path and not any((root / name).exists() for root in roots.of("models") if "\0" not in name):
        raise missing("model", name)
    folder = roots.inside(path, "models")
    if not folder.exists():
        raise missing("model", name)
    return _row(str(folder), folder, "run" if is_run(folder) else "folder")


def _aliases() -> Iterator[ModelRow]:
    for name, alias in ALIASES.items():
        file = installed_file(alias)
        yield ModelRow(
            name=name,
            kind="alias",
            about=alias.about,
            licence=alias.licence,
            here=file is not None,
            bytes=file.stat().st_size if file else None,
            has_template=True,
            problem="" if file else f"not on this machine; {alias.install}",
        )


def _folders(roots: Roots) -> Iterator[ModelRow]:
    for root in roots.models:
        for folder in _model_folders(root):
            yield _row(str(folder), folder, "folder")
        for file in sorted(root.rglob("*.gguf"))[:MOST_FOLDERS] if root.is_dir() else []:
            if file.is_file() and file.resolve().is_relative_to(root):
                yield ModelRow(name=str(file), kind="folder", here=True, architecture="gguf", bytes=file.stat().st_size)


def _model_folders(root: Path) -> Iterator[Path]:
    """Yield folders with a model below a root; links are not followed, and models do not hold others."""
    waiting, seen = [(root, 0)], 0
    while waiting and seen < MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        seen += 1
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        if any(entry.name in _MARKS for entry in entries):
            yield folder
        elif depth < DEEPEST:
            waiting += [
                (Path(entry.path), depth + 1)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and is_one_name(entry.name)
            ]


def hub_cache() -> Path:
    """Return the folder in which models of the hub are kept."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _cached() -> Iterator[ModelRow]:
    for folder in sorted(hub_cache().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshots = sorted(folder.glob("snapshots/*/config.json"), key=lambda path: path.stat().st_mtime)
        if snapshots:
            yield _row(name, snapshots[-1].parent, "cached")


def _runs(roots: Roots) -> Iterator[ModelRow]:
    for folder in sorted(roots.runs.iterdir()):
        if is_one_name(folder.name) and is_run(folder) and any((folder / mark).is_file() for mark in _MARKS):
            yield _row(str(folder), folder, "run")


def _row(name: str, folder: Path, kind: Any) -> ModelRow:
    try:
        found = (
            glance_at(folder) if folder.is_dir() else Glance("gguf", None, folder.stat().st_size, True, False, "", "")
        )
    except OSError as error:
        return ModelRow(name=name, kind=kind, here=True, problem=f"it cannot be read: {first_line(error)}")
    return ModelRow(
        name=name,
        kind=kind,
        about=f"adapter of {printable(found.adapter_of).strip(chr(39))}" if found.adapter_of else "",
        here=True,
        architecture=found.architecture,
        parameters=found.parameters,
        bytes=found.bytes,
        has_template=found.has_template,
        safetensors=found.safetensors,
        fits=None if found.parameters is None or found.adapter_of else fits(found.parameters),
        problem=found.problem,
    )


def fits(parameters: int) -> bool:
    """Tell whether a LoRA training of so many parameters fits into this machine's memory, roughly."""
    return parameters * BYTES_PER_PARAMETER + BYTES_OF_A_TRAINING < psutil.virtual_memory().total


def routes(state: State) -> APIRouter:
    """List models, look at one."""
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="All models that are known here")
    def every() -> Models:
        return list_models(state.roots)

    @router.get("/models/look", summary="One model, by any name that settings take")
    def look(name: Name) -> ModelRow:
        return look_at(state.roots, name)

    @router.get("/templates", summary="Whether a model brings a chat template, and which named ones fit it")
    def templates(model: Name) -> TemplateFit:
        row = look_at(state.roots, model)
        return TemplateFit(**state.worker.ask("templates", TEMPLATE_SECONDS, model=row.name))

    return router
