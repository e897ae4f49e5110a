"""Runs: the list, one of them, its curves, log and answers, and what may be done to it."""

from __future__ import annotations

import secrets
import signal
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import APIRouter, Query, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from luthier.core.masking import mask_text
from luthier.runs import logs, notes, trash
from luthier.runs.curves import Axis  # noqa: TC001  read by fastapi
from luthier.runs.launch import send
from luthier.runs.process import Identity
from luthier.runs.sample_index import Order, choose
from luthier.runs.store import FINAL_STATES, checkpoint_step, list_checkpoints, read_status
from luthier.server.ui.failures import Refused, missing
from luthier.server.ui.job_specs import spec_of
from luthier.server.ui.run_detail import checkpoints, detail, folder_of, rows_of
from luthier.server.ui.shapes.jobs import NewJob
from luthier.server.ui.shapes.runs import (
    Checkpoint,
    Curve,
    Curves,
    Deletion,
    LogPart,
    RunAction,
    RunChange,
    RunDetail,
    RunPage,
    RunRow,
    SampleGroups,
)

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.server.ui.caches import Caches
    from luthier.server.ui.state import State

T = TypeVar("T")
REFRESH_SECONDS = 0.3
MOST_ROWS = 1000
MOST_POINTS = 20_000
MOST_NAMES = 200
MOST_GROUPS = 200
MOST_LINES = 5000
_ARCHIVED = {"true": True, "false": False, "": False, "all": None, "null": None}
_ORDERS: dict[str, Order | None] = {"best": "best", "worst": "worst", "": None, "written": None}
_SIGNALS = {"stop": signal.SIGTERM, "pause": signal.SIGTERM, "kill": signal.SIGKILL, "save": signal.SIGUSR1}


def routes(state: State) -> APIRouter:
    """Return the routes of runs."""
    router = APIRouter(tags=["runs"])
    _add_list(router, state)
    _add_one(router, state, state.caches)
    _add_parts(router, state, state.caches)
    return router


def _add_list(router: APIRouter, state: State) -> None:
    @router.get("/runs", summary="Runs that a search finds")
    def search(
        q: str = "",
        state_: Annotated[str, Query(alias="state")] = "",
        objective: str = "",
        model: str = "",
        tag: str = "",
        since: Annotated[str, Query(description="Created then or later: an ISO date, or seconds since 1970")] = "",
        until: Annotated[str, Query(description="Created before; a day is in it")] = "",
        archived: str = "",
        sort: str = "created",
        descending: bool = True,  # noqa: FBT001  fastapi reads it from the address, by its name
        start: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=0, le=MOST_ROWS)] = 100,
    ) -> RunPage:
        index = state.index
        index.refresh(seconds=REFRESH_SECONDS)
        found, total = index.search(
            q,
            state=state_,
            objective=objective,
            model=[model],
            tag=tag,
            since=since,
            until=until,
            archived=_of(_ARCHIVED, archived, "archived"),
            sort=sort,
            descending=descending,
            start=start,
            count=count,
        )
        return RunPage(
            runs=rows_of(state, found),
            total=total,
            tags=index.tags(),
            models=index.models(),
            bytes=index.bytes(),
            rebuilding=index.rebuilding,
        )


def _of(table: dict[str, T], given: str, field: str) -> T:
    if given not in table:
        names = ", ".join(name for name in table if name)
        raise Refused(422, "request_field", f"{field} is one of {names}", field=field)
    return table[given]


def _add_one(router: APIRouter, state: State, caches: Caches) -> None:
    def row(id: str) -> RunRow:
        found = state.index.row(id)
        if found is None:
            raise missing("run", id)
        return rows_of(state, [found])[0]

    @router.get("/runs/{id}", summary="All about one run")
    def show(id: str) -> RunDetail:
        return detail(state, caches, id)

    @router.patch("/runs/{id}", summary="Change name, notes, tags")
    def change(id: str, body: RunChange) -> RunRow:
        notes.change(state.roots.run(id), **body.model_dump(exclude_none=True))
        return row(id)

    @router.post("/runs/{id}/action", summary="Pause, stop, kill, save or resume")
    async def act(id: str, body: RunAction) -> RunDetail:
        before = await run_in_threadpool(detail, state, caches, id)
        await run_in_threadpool(_act, state, id, body)
        if state.index.row(id) is not None:
            return await run_in_threadpool(detail, state, caches, id)
        # A run that waited and was cancelled is none any more.
        return before.model_copy(update={"state": "never started", "reason": "cancelled before it began"})

    @router.delete("/runs/{id}", summary="Delete a run; dry_run says what goes")
    def delete(id: str, dry_run: bool = False) -> Deletion:  # noqa: FBT001  fastapi reads it from the address, by its name
        run = state.roots.run(id)
        gone = trash.contents(run)
        entry = None if dry_run else trash.delete(state.roots.runs, id)
        return Deletion(
            run=id,
            bytes=gone.bytes,
            files=gone.files,
            checkpoints=gone.checkpoints,
            exports=gone.exports,
            done=entry is not None,
            undo_until=entry.undo_until if entry is not None else None,
        )

    @router.post("/runs/{id}/undelete", summary="Bring back what was deleted just now")
    def undelete(id: str) -> RunRow:
        trash.undelete(state.roots.runs, id)
        return row(id)

    @router.post("/runs/{id}/verify", summary="Read every byte of the checkpoints")
    def verify(id: str) -> list[Checkpoint]:
        return checkpoints(state.roots.run(id), hashes=True)


def _act(state: State, id: str, asked: RunAction) -> None:
    """Do what is asked to a run, through its job where it has one. Raises Refused where that cannot be."""
    if asked.action == "resume":
        request_id = asked.request_id or secrets.token_hex(8)
        try:
            new = NewJob(request_id=request_id, kind="train", resume=id, when="now")
        except ValidationError as error:
            said = "request_id: 8 to 64 letters, digits, _ and -"
            raise Refused(422, "request_field", said, field="request_id") from error
        if state.jobs.find(new.request_id) is None:
            state.jobs.add(spec_of(state, new))
        return
    job = state.jobs.for_run(id)
    if job is not None and job.state in ("starting", "running", "stopping", "held", "queued"):
        waits = job.state in ("held", "queued")
        action = "cancel" if waits else "stop" if asked.action == "pause" else asked.action
        state.jobs.act(job.id, action)
        return
    status = read_status(state.roots.run(id))
    holder = Identity.from_dict(status.get("process"))
    if holder is None or status.get("state") in (*FINAL_STATES, "crashed"):
        raise Refused(409, "run_state", f"it does not run: {status.get('state') or 'never started'}", field="action")
    if not send(holder, _SIGNALS[asked.action], group=asked.action == "kill"):
        raise Refused(409, "run_elsewhere", f"its process {holder.pid} on {holder.host} cannot be reached from here")


def _add_parts(router: APIRouter, state: State, caches: Caches) -> None:
    @router.get("/runs/{id}/curves", summary="Curves, thinned", response_model=Curves)
    def curves(
        id: str,
        names: str = "",
        x: Axis = "step",
        from_: Annotated[float | None, Query(alias="from")] = None,
        to: float | None = None,
        points: Annotated[int, Query(ge=2, le=MOST_POINTS)] = 2000,
    ) -> Response:
        run = folder_of(state, id)
        found = curves_of(caches, run, [name for name in names.split(",") if name][:MOST_NAMES], x, from_, to, points)
        return Response(found.model_dump_json(), media_type="application/json")

    @router.get("/runs/{id}/log", summary="Lines of the log")
    def log(
        id: str,
        after: Annotated[int | None, Query(ge=0)] = None,
        before: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LINES)] = 500,
    ) -> LogPart:
        return log_part(folder_of(state, id) / "log.txt", after, before, limit)

    @router.get("/runs/{id}/samples", summary="Answers of a run")
    def samples(
        id: str,
        step: Annotated[int | None, Query(ge=0)] = None,
        order: str = "",
        start: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=0, le=MOST_GROUPS)] = 20,
    ) -> SampleGroups:
        index = caches.samples(folder_of(state, id))
        places = index.refresh()
        chosen = choose(places, step, _of(_ORDERS, order, "order"))
        return SampleGroups(
            groups=index.read(chosen[start : start + count]),
            steps=sorted({each.step for each in places}),
            total=len(chosen),
        )


def curves_of(
    caches: Caches,
    run: Path,
    names: list[str],
    axis: Axis = "step",
    begin: float | None = None,
    end: float | None = None,
    points: int = 2000,
) -> Curves:
    """Return curves of a run up to an event, from which the stream of events goes on."""
    read = caches.curves(run)
    # First the number: an event that comes meanwhile is in the stream once more rather than nowhere.
    last_seq = read.last_seq
    found: list[Curve] = []
    for name in names or read.names:
        x, y, count = read.curve(name, axis, begin, end, points)
        found.append(Curve.model_construct(name=name, x=x, y=y, points=count))
    marks = [("resumed", step) for step in read.resumed]
    marks += [("checkpoint", checkpoint_step(path) or 0) for path in list_checkpoints(run)]
    placed = [{"kind": kind, "step": step, **read.place(step)} for kind, step in marks]
    return Curves.model_construct(run=run.name, last_seq=last_seq, curves=found, marks=placed)


def log_part(path: Path, after: int | None, before: int | None, limit: int) -> LogPart:
    """Return lines of a log without secrets."""
    found = logs.read_part(path, after=after, before=before, limit=limit)
    return LogPart(lines=[mask_text(line) for line in found.lines], begin=found.begin, offset=found.end)
