"""Jobs and their queue over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query

from luthier.core.errors import RunError
from luthier.core.masking import mask, mask_text
from luthier.runs.logs import read_part
from luthier.server.ui.failures import Refused
from luthier.server.ui.job_specs import spec_of
from luthier.server.ui.said import CHECKED, said_within
from luthier.server.ui.shapes.jobs import Job, JobAction, Jobs, NewJob, QueueChange
from luthier.server.ui.shapes.runs import LogPart

if TYPE_CHECKING:
    from luthier.runs.job_view import JobView
    from luthier.server.ui.state import State

_STATUS = {"job_missing": 404, "job_conflict": 409, "job_state": 409, "job_tries": 409, "queue_busy": 503}
"""Code of an error -> status of the reply, where it is not the caller's mistake alone."""


def job_of(view: JobView) -> Job:
    """Return a job as the page shows it, without secrets."""
    plain = asdict(view)
    for key in ("log_tail", "result", "error"):
        plain[key] = mask(plain[key])
    for key in ("reason", "command", "doing"):
        plain[key] = mask_text(plain[key])
    plain["result"] = said_within(plain["result"], CHECKED)
    return Job(**plain)


def jobs_of(state: State) -> Jobs:
    """Return all jobs, and how they are taken from the queue."""
    plan = state.jobs.plan()
    return Jobs(jobs=[job_of(view) for view in state.jobs.all()], slots=plan.slots, holding=plan.holding)


def refused(error: RunError) -> Exception:
    """Return an error of the queue as a reply; others as they are."""
    return Refused(_STATUS[error.code], error.code, str(error)) if error.code in _STATUS else error


def routes(state: State) -> APIRouter:
    """Begin jobs, look at them, stop them, order them."""
    router = APIRouter(tags=["jobs"])

    @router.get("/jobs", summary="All jobs: those that wait, those that run, those that ended")
    def all_jobs() -> Jobs:
        return jobs_of(state)

    @router.post("/jobs", summary="Begin something; the same request_id twice is one job")
    def add(body: NewJob) -> Job:
        try:
            known = state.jobs.find(body.request_id)
            return job_of(known if known is not None else state.jobs.add(spec_of(state, body)))
        except RunError as error:
            raise refused(error) from error

    @router.get("/jobs/{id}", summary="One job")
    def one(id: str) -> Job:
        try:
            return job_of(state.jobs.get(id))
        except RunError as error:
            raise refused(error) from error

    @router.get("/jobs/{id}/log", summary="Lines of a job's log, behind or before a byte; the last ones without either")
    def log(
        id: str,
        after: Annotated[int | None, Query(ge=0)] = None,
        before: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    ) -> LogPart:
        try:
            path = state.jobs.log_path(id)
        except RunError as error:
            raise refused(error) from error
        part = read_part(path, after=after, before=before, limit=limit)
        return LogPart(lines=[mask_text(line) for line in part.lines], offset=part.end, begin=part.begin)

    @router.post("/jobs/{id}/action", summary="Hold, release, cancel, stop, kill, save, retry or forget a job")
    def act(id: str, body: JobAction) -> Job:
        try:
            return job_of(state.jobs.act(id, body.action))
        except RunError as error:
            raise refused(error) from error

    @router.patch("/queue", summary="Order, how many run at once, whether anything is begun")
    def change(body: QueueChange) -> Jobs:
        try:
            state.jobs.change_queue(slots=body.slots, holding=body.holding, order=body.order)
        except RunError as error:
            raise refused(error) from error
        return jobs_of(state)

    return router
