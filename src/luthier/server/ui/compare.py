"""Runs side by side: the settings that differ, what became of them, and their answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from fastapi import APIRouter, Query

from luthier.core.masking import mask
from luthier.runs.sample_index import choose
from luthier.runs.store import list_checkpoints, read_status
from luthier.server.ui.evaluations import evaluations_of
from luthier.server.ui.failures import Refused
from luthier.server.ui.run_detail import rows_of
from luthier.server.ui.shapes.runs import Comparison, ConfigDifference, RunRow, SampleGroups

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.server.ui.caches import Caches
    from luthier.server.ui.state import State

MOST_RUNS = 20
MOST_GROUPS = 50
_PLACES = {"train.output_dir", "train.run_name", "train.resume"}
"""Settings that say where a run is and not what it does."""
_ENDS = ("last", "least", "greatest")
_OF_STATUS = ("state", "step", "total", "tokens_per_second", "peak_memory_bytes", "seconds")


def routes(state: State) -> APIRouter:
    """Return the routes of comparisons."""
    router = APIRouter(tags=["runs"])

    def split(runs: str) -> tuple[list[RunRow], list[str]]:
        names = list(dict.fromkeys(name for name in runs.split(",") if name))
        if len(names) > MOST_RUNS:
            said = f"at most {MOST_RUNS} runs are compared; {len(names)} were named"
            raise Refused(422, "request_field", said, field="runs")
        found = {name: row for name in names if (row := state.index.row(name)) is not None}
        there = [row for name, row in found.items() if (state.roots.runs / name).is_dir()]
        ids = {row.id for row in there}
        return rows_of(state, there), [name for name in names if name not in ids]

    @router.get("/compare", summary="Runs side by side")
    def compare(runs: str) -> Comparison:
        rows, missing = split(runs)
        return comparison(rows, missing, [state.roots.run(row.id) for row in rows], state.caches)

    @router.get("/compare/samples", summary="Answers of several runs, by run")
    def samples(
        runs: str,
        step: Annotated[int | None, Query(ge=0)] = None,
        count: Annotated[int, Query(ge=1, le=MOST_GROUPS)] = 20,
    ) -> dict[str, SampleGroups]:
        rows, _ = split(runs)
        found: dict[str, SampleGroups] = {}
        for row in rows:
            index = state.caches.samples(state.roots.run(row.id))
            places = index.refresh()
            chosen = choose(places, step, None)
            steps = sorted({each.step for each in places})
            found[row.id] = SampleGroups(groups=index.read(chosen[:count]), steps=steps, total=len(chosen))
        return found

    return router


def comparison(rows: list[RunRow], missing: list[str], runs: list[Path], caches: Caches) -> Comparison:
    """Return what is the same and what is not. `runs`: the folders of `rows`, in their order."""
    versions = [_versions(run) for run in runs]
    return Comparison(
        runs=rows,
        missing=missing,
        settings=differences([_flat(_config(run)) for run in runs], leave=_PLACES),
        data_equal=_equal([_fingerprint(run) for run in runs]),
        versions=differences(versions),
        versions_equal=_equal([each or None for each in versions]),
        results=_results(runs, caches),
        evaluations=[{"run": run.name, **each} for run in runs for each in evaluations_of(run, 1)],
    )


def _equal(each: list[Any]) -> bool | None:
    """Tell whether several are the same; None where one is not known."""
    known = len(each) > 1 and None not in each
    return all(one == each[0] for one in each) if known else None


def differences(each: list[dict[str, Any]], leave: set[str] | None = None) -> list[ConfigDifference]:
    """Return what differs between records; what one of them lacks is null there."""
    keys = dict.fromkeys(key for one in each for key in one if key not in (leave or ()))
    rows = {key: [one.get(key) for one in each] for key in keys}
    told = {key: {json.dumps(value, sort_keys=True, default=str) for value in values} for key, values in rows.items()}
    return [ConfigDifference(key=key, values=values) for key, values in rows.items() if len(told[key]) > 1]


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names, without secrets."""
    if isinstance(value, dict) and (value or not place):
        found: dict[str, Any] = {}
        for key, each in mask(value).items():
            found |= _flat(each, f"{place}.{key}" if place else str(key))
        return found
    return {place: value}


def _config(run: Path) -> Any:
    try:
        return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _newest(run: Path, name: str) -> dict[str, Any]:
    """Return a JSON file of the newest checkpoint that has it."""
    for folder in list_checkpoints(run):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _fingerprint(run: Path) -> Any:
    """Return what tells the rows of a run from others; None where that is not known."""
    identity = _newest(run, "state.json").get("identity")
    return identity.get("data") if isinstance(identity, dict) else None


def _versions(run: Path) -> dict[str, Any]:
    manifest = _newest(run, "manifest.json")
    return {name: manifest[name] for name in ("luthier", "torch") if name in manifest}


def _results(runs: list[Path], caches: Caches) -> list[ConfigDifference]:
    """Return facts of the status, and of each metric its last, least and greatest value."""
    rows: dict[str, list[Any]] = {}
    for place, run in enumerate(runs):
        status = read_status(run)
        facts: dict[str, Any] = {key: status.get(key) for key in _OF_STATUS}
        curves = caches.curves(run)
        for name in curves.names:
            ends = curves.ends(name)
            facts |= {
                f"{name} ({what})": value for what, value in zip(("last", "least", "greatest"), ends, strict=True)
            }
        for key, value in facts.items():
            rows.setdefault(key, [None] * len(runs))[place] = value
    return [ConfigDifference(key=key, values=values) for key, values in rows.items()]
