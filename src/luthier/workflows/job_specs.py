"""Trainings as jobs: settings become the file and the command line that a queue runs later, in a folder of its own."""

from __future__ import annotations

import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.config.load import SHELVES, dump
from luthier.core.errors import RunError
from luthier.core.log import printable
from luthier.runs.job_files import JobSpec, When

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.config.load import Loaded
    from luthier.config.schema import RunConfig

CONFIG = "config.yaml"
_OF_THE_JOB = ("output_dir",)
"""Settings that the job gives itself."""


def luthier(*words: str) -> tuple[str, ...]:
    """Return the command line of this luthier, in this Python."""
    return (sys.executable, "-m", "luthier", *words)


def new_request_id() -> str:
    """Return an id that nobody else has, which sorts by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def said(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return what was given and what follows from it, in the nested form; `load_config` reads it back."""
    found: dict[str, dict[str, Any]] = {}
    for section, values in dump(loaded.config).items():
        kept = {key: value for key, value in values.items() if f"{section}.{key}" in loaded.places}
        if section in SHELVES:
            kept = {"name": values["name"], **kept}
        if kept:
            found[section] = kept
    return found


def as_file(nested: dict[str, dict[str, Any]]) -> str:
    """Return settings as the text of a file."""
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def name_of(config: RunConfig) -> str:
    """Return what a training is called that nobody has named: its folder, or its model and its rows."""
    asked = config.train.run_name or Path(config.train.output_dir or "").name
    data = Path(config.data.dataset[0]).stem if config.data.dataset else "run"
    return asked or f"{Path(config.model.model_name_or_path).name}-{data}"


def train_spec(
    loaded: Loaded,
    *,
    request_id: str,
    name: str = "",
    when: When = "queue",
    notes: str = "",
    tags: Sequence[str] = (),
    memory_bytes: int | None = None,
    run: str | None = None,
) -> JobSpec:
    """Return the job that trains with settings, in the run directory `run`, or in a new one with a name like theirs.

    Nothing is written. `memory_bytes` is what it is expected to take, where that is known.
    """
    nested = said(loaded)
    for key in _OF_THE_JOB:
        nested.get("train", {}).pop(key, None)
    if name:
        nested.setdefault("train", {})["run_name"] = name
    return JobSpec(
        request_id=request_id,
        kind="train",
        command=luthier("train", f"{{job}}/{CONFIG}", "train.output_dir={run}", "--json"),
        name=name,
        run=run or name or name_of(loaded.config),
        fresh_run=run is None,
        files={CONFIG: as_file({section: values for section, values in nested.items() if values})},
        folder=os.getcwd(),
        when=when,
        memory_bytes=memory_bytes,
        notes=notes,
        tags=tuple(tags),
    )


def run_of(config: RunConfig, root: Path) -> str | None:
    """Return the name of the run directory that settings ask for below `root`; None where they ask for none.

    Raises RunError for one that lies elsewhere, and for one that holds something that would be lost.
    """
    asked = config.train.output_dir
    if asked is None:
        return None
    path = Path(asked).expanduser().resolve()
    if path.parent != root.resolve() or path.name.startswith("."):
        raise RunError(
            f"output_dir {printable(asked)} is not directly in the folder of runs {root}; leave it out, or name that "
            "folder with --runs",
            code="run_elsewhere",
        )
    there = path.is_dir() and any(path.iterdir())
    if there and config.train.resume == "never" and not config.train.overwrite_output_dir:
        raise RunError(
            f"output_dir {asked} has files; go on with resume=auto, choose another output_dir, or replace it with "
            "overwrite_output_dir=true",
            code="run_exists",
        )
    return path.name
