"""Results of evaluations as files: written whole into a folder that is not there yet, and read back. No torch here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from luthier.core.errors import RunError
from luthier.core.log import printable
from luthier.core.paths import beside, sync_folder, write_whole
from luthier.evaluation.kind import Evaluation
from luthier.evaluation.measure import unique
from luthier.runs.store import new_run_path, slug

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "evaluation"
"""Folder of results in a run directory."""
FILE = "results.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Written:
    """What is written about one model, and about the one that it is compared with."""

    settings: Mapping[str, Any]
    evaluations: Sequence[Evaluation]
    """The model that the folder is about stands last."""


def folder_for(run: Path | None, out: Path | None, name: str | None) -> Path | None:
    """Return the folder that results go to; None where they are only shown.

    Raises RunError when it is there already: nothing is written over.
    """
    if out is not None:
        folder = out
    elif run is None:
        return None
    elif name is None:
        return run / FOLDER / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    else:
        folder = run / FOLDER / slug(name)
    if folder.exists() and not (out is not None and folder.is_dir() and not any(folder.iterdir())):
        raise RunError(f"{folder} is there already and is not written over; choose another name", code="run_exists")
    return folder


def write(folder: Path, what: Written) -> Path:
    """Write results.json and the predictions of each kind, all of them or nothing; return the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(folder)
    temporary.mkdir()
    try:
        names = unique([slug(each.model) for each in what.evaluations])
        names[-1] = ""
        for evaluation, name in zip(what.evaluations, names, strict=True):
            for kind, outcome in evaluation.outcomes.items():
                if outcome.lines:
                    file = f"predictions-{kind}{name and '-'}{name}.jsonl"
                    write_whole(temporary / file, json_lines(outcome.lines))
        write_whole(temporary / FILE, json.dumps(plain(what), indent=1, ensure_ascii=False, allow_nan=False))
        target = _free(folder)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return target


def _free(folder: Path) -> Path:
    """Return `folder`, or a name beside it where another process has been quicker."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return folder if not folder.exists() else new_run_path(folder.parent, folder.name)


def json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return one JSON object a line."""
    return "".join(json.dumps(_finite(line), ensure_ascii=False, allow_nan=False, default=str) + "\n" for line in lines)


def plain(what: Written) -> dict[str, Any]:
    """Return what results.json holds."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _finite(
        {
            "schema": SCHEMA,
            "time": now,
            "settings": dict(what.settings),
            "models": [plain_evaluation(each) for each in what.evaluations],
        }
    )


def plain_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Return the numbers of one model."""
    return {
        "model": evaluation.model,
        "measures": {measure.name: measure.as_dict() for measure in evaluation.measures},
        "against": evaluation.against,
        "differences": {name: each.as_dict() for name, each in evaluation.differences.items()},
        "notes": evaluation.notes,
    }


def _finite(value: Any) -> Any:
    """Return the value with NaN and infinities as null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def list_results(run: Path) -> list[Path]:
    """Return the folders of results of a run, newest first."""
    found = [path.parent for path in (run / FOLDER).glob(f"*/{FILE}")]
    return sorted(found, key=lambda folder: (folder / FILE).stat().st_mtime_ns, reverse=True)


def read(folder: Path) -> dict[str, Any]:
    """Return what results.json in `folder` holds. Raises RunError when it cannot be read."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise RunError(f"{path} has schema {printable(found['schema'])}; this version reads {SCHEMA}")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read: {printable(error, 200)}") from error
