"""One run in full: its files, why it ended, and whether it can go on."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, cast

import yaml

from luthier.core.masking import mask, mask_text
from luthier.runs import logs
from luthier.runs.job_files import ACTIVE
from luthier.runs.manifest import damage
from luthier.runs.process import Identity
from luthier.runs.store import checkpoint_step, list_checkpoints, read_status
from luthier.runs.trash import is_one_name, sizes_below
from luthier.server.ui.failures import missing
from luthier.server.ui.said import said, said_of
from luthier.server.ui.shapes.runs import Checkpoint, Finding, RunDetail, RunRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from luthier.runs.facts import Row
    from luthier.runs.job_files import Now
    from luthier.runs.job_view import JobView
    from luthier.server.ui.caches import Caches
    from luthier.server.ui.state import State

TAIL_LINES = 50
WORKING = ("starting", "running", "saving", "stopping")
SAID = ("stopped", "failed")
"""A process says so itself, and ends a moment later."""
ENDED_EARLY = (*SAID, "crashed")
ENDED_BADLY = ("failed", "crashed", "never started")
LARGEST_CONFIG_BYTES = 1 << 20
_REASONS = {
    "disk_full": "the disk was full: {error}",
    "out_of_memory": "memory was not enough: {error}",
    "nonfinite": "a number was not finite: {error}",
    "signal 2": "stopped by Ctrl-C; a checkpoint was saved before",
    "signal 15": "stopped as asked; a checkpoint was saved before",
    "signal 1": "stopped because its terminal was closed; a checkpoint was saved before",
}
"""error_code or stop_reason of status.json -> words."""


def rows_of(state: State, found: Sequence[Row]) -> list[RunRow]:
    """Return lines of the list.

    A run whose process has said how it ended is `stopping` until that process is gone, because before it cannot be
    resumed; one that is gone on with is `starting` until the new process says a word.
    """
    jobs = {job.spec.run: job.now for job in state.jobs.files() if job.spec.kind == "train" and job.now.state in ACTIVE}
    return [_row_of(each, jobs.get(each.id)) for each in found]


def _row_of(found: Row, job: Now | None) -> RunRow:
    fields = {name: getattr(found, name) for name in RunRow.model_fields}
    if job is not None and found.state in ENDED_EARLY and found.updated < (job.launched or 0.0):
        fields["state"] = "starting"
    elif job is not None and (found.state in SAID or (job.state == "stopping" and found.state in WORKING)):
        fields["state"] = "stopping"
    return RunRow.model_validate(fields)


def folder_of(state: State, id: str) -> Path:
    """Return the folder of a run; of one that waits, where it will be. Raises Refused where there is none."""
    waits = is_one_name(id) and not (state.roots.runs / id).exists() and state.index.row(id) is not None
    return state.roots.runs / id if waits else state.roots.run(id)


def detail(state: State, caches: Caches, id: str) -> RunDetail:
    """Return all about a run. Raises Refused where there is none."""
    found = state.index.row(id)
    if found is None:
        raise missing("run", id)
    job = state.jobs.for_run(id)
    (row,) = rows_of(state, [found])
    run = state.roots.run(id) if (state.roots.runs / id).is_dir() else None
    facts = _of_folder(run, row, job, caches) if run is not None else _of_job(state, job)
    return RunDetail.model_validate(
        {
            **row.model_dump(),
            "job": job.id if job is not None else None,
            "command": mask_text(job.command)
            if job is not None
            else f"luthier train {shlex.quote(str(run))}/config.yaml",
            "log_tail": list(map(mask_text, job.log_tail)) if job is not None and run is None else [],
            **facts,
        }
    )


def _command(run: Path) -> str:
    return shlex.join(["luthier", "train", f"{run}/config.yaml", f"output_dir={run}"])


def _of_job(state: State, job: JobView | None) -> dict[str, Any]:
    """Return what is known of a run whose folder is not there (yet)."""
    text = _read_text(state.jobs.path(job.id) / "config.yaml") if job is not None else ""
    waits = job is not None and job.state in ("held", "queued", "starting", "running")
    return {
        "status": {},
        **_config(text),
        "checkpoints": [],
        "metrics": [],
        "diagnosis": [],
        "reason": mask_text(job.reason) if job is not None else "",
        "resumable": False,
        "blocker": "it has not begun yet" if waits else "it never began; start it anew",
        "samples": 0,
        "evaluations": 0,
        "exports": [],
    }


def _of_folder(run: Path, row: RunRow, job: JobView | None, caches: Caches) -> dict[str, Any]:
    from luthier.evaluation.results import list_results

    status = read_status(run)
    points = checkpoints(run)
    blocker = blocker_of(run, row, points)
    exports = run / "exports"
    return {
        "status": mask(status),
        **_config(_read_text(run / "config.yaml")),
        "checkpoints": points,
        "metrics": caches.curves(run).names,
        "diagnosis": [_found(each) for each in caches.findings(run)],
        "reason": mask_text(reason_of(status, row.state, job)),
        "log_tail": _tail(run, job) if row.state in ENDED_BADLY else [],
        "resumable": not blocker,
        "blocker": blocker,
        "samples": len(caches.samples(run).refresh()),
        "evaluations": len(list_results(run)),
        "exports": sorted(each.name for each in exports.iterdir()) if exports.is_dir() else [],
    }


def _found(finding: dict[str, Any]) -> Finding:
    parts = (said(finding[key]) for key in ("seen", "means", "do"))
    told = said_of("{} {}: {}; {}", finding["metric"], *parts)
    return Finding(level=finding["level"], metric=finding["metric"], text=told)


def _config(text: str) -> dict[str, Any]:
    """Return settings as values and as text, without secrets."""
    try:
        found = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        return {"config": {}, "yaml": mask_text(text)}
    plain = cast("dict[str, Any]", mask(found))
    sections = {key: value for key, value in plain.items() if isinstance(value, dict)}
    masked = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True) if plain != found else text
    return {"config": sections, "yaml": masked}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST_CONFIG_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _tail(run: Path, job: JobView | None) -> list[str]:
    lines = logs.tail(run / "log.txt", TAIL_LINES) or (job.log_tail if job is not None else [])
    # A trace of the interpreter goes to standard error alone.
    more = [line for line in job.log_tail if line not in set(lines)] if job is not None else []
    return [mask_text(line) for line in [*lines, *more][-TAIL_LINES:]]


def checkpoints(run: Path, *, hashes: bool = False) -> list[Checkpoint]:
    """Return the checkpoints of a run, newest first, each looked at; with `hashes` every byte of it."""
    found = [(path, damage(path, hashes=hashes)) for path in list_checkpoints(run)]
    return [
        Checkpoint(
            name=path.name,
            step=checkpoint_step(path) or 0,
            bytes=sum(sizes_below(path)),
            verified=harm is None,
            damage=harm or "",
        )
        for path, harm in found
    ]


def reason_of(status: dict[str, Any], state: str, job: JobView | None) -> str:
    """Return why a run ended, in words; nothing where it has not, or simply is done."""
    if state in ("done", *WORKING, "queued"):
        return ""
    key = str(status.get("error_code") or status.get("stop_reason") or "")
    if state == "crashed":
        return _crash(status, job)
    said = _REASONS.get(key, "{error}" if status.get("error") else key)
    return said.format(error=status.get("error") or "no more is known") or (job.reason if job is not None else "")


def _crash(status: dict[str, Any], job: JobView | None) -> str:
    if job is not None and job.reason:
        return job.reason
    holder = Identity.from_dict(status.get("process"))
    if holder is not None and holder.boot != Identity.here().boot and holder.host == Identity.here().host:
        return "the machine was started anew while it ran"
    return "its process is gone without a word: killed by the kernel for memory, or by hand"


def blocker_of(run: Path, row: RunRow, points: list[Checkpoint]) -> str:
    """Return what keeps a run from being resumed; nothing where it can be."""
    if row.state in (*WORKING, "queued"):
        return f"it is at work: {row.state}"
    if row.state == "done":
        return "it is finished; duplicate it with more epochs or steps to go on"
    if not (run / "config.yaml").is_file():
        return "config.yaml is gone"
    if not points:
        return "it had not saved a checkpoint yet; duplicate it to start anew"
    if not any(each.verified for each in points):
        first = points[0]
        return f"no checkpoint is whole; of {first.name}: {first.damage}"
    return ""
