"""Evaluations of a run: their numbers, and the items on which two models differ most."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from luthier.core.errors import RunError
from luthier.core.masking import mask
from luthier.runs.store import read_lines
from luthier.runs.trash import is_one_name
from luthier.server.ui.failures import missing
from luthier.server.ui.said import said_within
from luthier.server.ui.shapes.runs import ChangedItem, EvaluationList

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.server.ui.state import State

MOST_ITEMS = 200
NOTED = frozenset({"notes", "error"})
"""Parts of an evaluation that are for people."""
MOST_CHARACTERS = 20_000
"""Of one text of an item."""


def routes(state: State) -> APIRouter:
    """Return the routes of evaluations."""
    router = APIRouter(tags=["runs"])

    @router.get("/runs/{id}/evaluations", summary="Evaluations of a run, newest first")
    def evaluations(id: str) -> EvaluationList:
        return EvaluationList(evaluations=evaluations_of(state.roots.run(id)))

    @router.get("/runs/{id}/evaluations/{name}/items", summary="Items that changed most, in both directions")
    def items(id: str, name: str, limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20) -> list[ChangedItem]:
        from luthier.evaluation.results import list_results

        folders = {folder.name: folder for folder in list_results(state.roots.run(id))}
        if not is_one_name(name) or name not in folders:
            raise missing("evaluation", name)
        return changed_items(folders[name], limit)

    return router


def evaluations_of(run: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Return evaluations, newest first, in the language of the request.

    One that cannot be read has an `error` instead of results.
    """
    from luthier.evaluation.results import list_results

    return said_within([_one(folder) for folder in list_results(run)[:most]], NOTED)


def _one(folder: Path) -> dict[str, Any]:
    from luthier.evaluation.results import read

    facts: dict[str, Any] = {"name": folder.name, "created": (folder / "results.json").stat().st_mtime}
    try:
        found = read(folder)
        facts["created"] = datetime.fromisoformat(found["time"]).timestamp()
    except (RunError, KeyError, ValueError) as error:
        return {**facts, "models": [], "kinds": [], "error": str(error)}
    kinds = {path.name.removeprefix("predictions-").split("-")[0].removesuffix(".jsonl") for path in _answers(folder)}
    settings = found.get("settings", {}).get("eval", {})
    names = kinds | set(settings.get("kinds") or []) if isinstance(settings, dict) else kinds
    models = [each.get("model") for each in found.get("models", [])]
    return {**facts, "models": models, "kinds": sorted(names), "results": mask(found)}


def _answers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("predictions-*.jsonl") if path.is_file() and not path.is_symlink())


def changed_items(folder: Path, limit: int) -> list[ChangedItem]:
    """Return the items whose score changed most from the model compared with: `limit` gains, then as many losses."""
    higher = _higher_is_better(folder)
    found: list[tuple[float, ChangedItem]] = []
    after = folder / "predictions-generate.jsonl"
    before = next((path for path in _answers(folder) if path.name.startswith("predictions-generate-")), None)
    if before is None or not after.is_file():
        return []
    known = {str(line.get("origin")): line for line in read_lines(before)}
    for line in read_lines(after):
        other = known.get(str(line.get("origin")))
        if other is None:
            continue
        scores = _score(other, higher), _score(line, higher)
        item = ChangedItem(
            prompt=_text(line.get("question")),
            expected=_text(line.get("expected")),
            before=_text(other.get("answer")),
            after=_text(line.get("answer")),
            before_score=scores[0],
            after_score=scores[1],
        )
        found.append(((scores[1] or 0.0) - (scores[0] or 0.0), item))
    found.sort(key=lambda each: each[0], reverse=True)
    gains = [item for change, item in found if change > 0][:limit]
    losses = [item for change, item in reversed(found) if change < 0][:limit]
    return [*gains, *losses]


def _higher_is_better(folder: Path) -> set[str]:
    from luthier.evaluation.results import read

    models = read(folder).get("models", [])
    measures = models[-1].get("measures", {}) if models else {}
    return {name for name, each in measures.items() if each.get("better") == "higher" and not each.get("detail")}


def _score(line: dict[str, Any], names: set[str]) -> float | None:
    """Return the mean of the grades of an answer of which more is better."""
    grades = line.get("grades")
    values = [float(grades[name]) for name in names if isinstance(grades, dict) and grades.get(name) is not None]
    return sum(values) / len(values) if values else None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text[:MOST_CHARACTERS]
