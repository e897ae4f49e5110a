"""What audits found: they are run as jobs, or on the command line, and kept beside each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from luthier.data.audit import AuditReport
from luthier.data.audit_files import kept_audit
from luthier.server.ui.failures import Refused
from luthier.server.ui.sets import Found, find_set
from luthier.server.ui.shapes.data import Audit, AuditFinding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.data.row_index import RowFile
    from luthier.server.ui.state import State

SHOWN_PER_KIND = 200
_RUNNING = ("held", "queued", "starting", "running", "stopping")
_BAD = ("failed", "crashed")


def audit_of(state: State, found: Found) -> Audit:
    """Return the last audit of a data set, and whether one is under way."""
    job = _newest_job(state, found)
    kept = kept_audit(found.path)
    running = job is not None and job.state in _RUNNING
    failed = job is not None and job.state in _BAD and (kept is None or (job.ended or 0.0) > kept.made)
    shown = Audit(
        dataset=found.name,
        state="running" if running else "failed" if failed else "done" if kept else "none",
        job=job.id if job is not None else None,
    )
    if kept is None:
        return shown
    report = kept.report
    shown.rows, shown.trained_rows = report["rows"], report["trained_rows"]
    shown.tokens, shown.learned_tokens = report["tokens"], report["learned_tokens"]
    shown.cut_tokens, shown.counts, shown.levels = report["cut_tokens"], report["counts"], kept.level_of()
    shown.findings, shown.lengths = list(_findings(report)), report["lengths"]
    shown.cutoff_len, shown.stale = kept.cutoff_len, kept.is_stale()
    return shown


def _findings(report: dict[str, Any]) -> Iterator[AuditFinding]:
    seen: dict[str, int] = {}
    for finding in report["findings"]:
        seen[finding["kind"]] = seen.get(finding["kind"], 0) + 1
        if seen[finding["kind"]] <= SHOWN_PER_KIND:
            yield AuditFinding(**finding)


def _newest_job(state: State, found: Found) -> Any:
    """Return the newest job that audits a data set; None where there is none."""
    name = found.name
    path = str(found.source.path)
    for job in sorted((job for job in state.jobs.all() if job.kind == "audit"), key=lambda job: -job.created):
        if _audits(state, job.id, (name, path), str(found.folder)):
            return job
    return None


def _audits(state: State, job: str, names: tuple[str, ...], folder: str) -> bool:
    from luthier.config.load import load_config
    from luthier.core.errors import LuthierError

    file = state.jobs.path(job) / "config.yaml"
    if not file.is_file():
        return False
    try:
        data = load_config(file).config.data
    except LuthierError:
        return False
    return (
        len(data.dataset) == 1
        and data.dataset[0] in names
        and (data.dataset[0] == names[1] or data.dataset_dir == folder)
    )


def bad_rows(found: Found, kinds: list[str]) -> tuple[str, Iterator[bytes]]:
    """Return a file name and JSON lines of the rows with findings of `kinds`; without any, those with errors.

    Raises Refused where no audit of the file as it is now is known.
    """
    path = found.path
    kept = kept_audit(path)
    if kept is None or kept.is_stale():
        said = f"{found.name} was not audited, or has changed since; audit it first"
        raise Refused(409, "data_no_audit", said)
    report = AuditReport.from_dict(kept.report)
    levels = kept.level_of()
    wanted = kinds or [kind for kind, level in levels.items() if level == "error"]
    rows: dict[int, list[str]] = {}
    for kind in wanted:
        for row in report.places.get(kind, []):
            rows.setdefault(row, []).append(kind)
    return f"{path.stem}.bad.jsonl", _as_lines(found.rows(), rows)


def _as_lines(file: RowFile, rows: dict[int, list[str]]) -> Iterator[bytes]:
    for place in sorted(rows):
        for row in file.each(place, 1):
            line = {"line": row.line, "kinds": rows[place], "broken": row.broken or None, "row": row.value}
            yield json.dumps(line, default=str).encode() + b"\n"


def routes(state: State) -> APIRouter:
    """Show audits, and hand out the rows that they found fault with."""
    router = APIRouter(tags=["data"], prefix="/data")

    @router.get("/audit", summary="What reading every row of a data set found")
    def audit(dataset: str, folder: str) -> Audit:
        return audit_of(state, find_set(state.roots, dataset, folder))

    @router.get("/bad-rows", summary="Rows with findings, as JSON lines", response_class=StreamingResponse)
    def download(dataset: str, folder: str, kinds: Annotated[str, Query(max_length=2000)] = "") -> StreamingResponse:
        named = [kind for kind in kinds.split(",") if kind]
        name, lines = bad_rows(find_set(state.roots, dataset, folder), named)
        headers = {"Content-Disposition": f'attachment; filename="{name.encode("ascii", "replace").decode()}"'}
        return StreamingResponse(lines, media_type="application/jsonl", headers=headers)

    return router
