"""luthier queue: trainings that wait for their turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import AsJson, File, Overrides

if TYPE_CHECKING:
    from luthier.runs.job_view import JobView
    from luthier.runs.jobs import Jobs

queue_app = typer.Typer(help="Let trainings wait for their turn.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="Id of the job, or enough of its beginning; see `luthier queue list`.")]
Root = Annotated[Path, typer.Option("--runs", help="Folder of runs; its queue is that of `luthier ui` there.")]
RUNS = Path("runs")
_LOOK_SECONDS = 0.5


@queue_app.command("add")
def add(
    file: File,
    overrides: Overrides = None,
    name: Annotated[str, typer.Option(help="Name of the run; none takes that of the settings.")] = "",
    hold: Annotated[bool, typer.Option("--hold", help="Do not begin before it is released.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Begin at once, whatever else runs.")] = False,
    request_id: Annotated[str, typer.Option(help="Id to give; adding the same one again changes nothing.")] = "",
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """Put a training into the queue; `luthier queue run` or `luthier ui` begins it when its turn comes."""
    from luthier.cli.common import load
    from luthier.core.errors import ConfigError
    from luthier.workflows.job_specs import new_request_id, run_of, train_spec

    if hold and now:
        raise ConfigError("--hold and --now are opposites; keep one")
    loaded = load(file, overrides)
    if not loaded.config.data.dataset:
        raise ConfigError("dataset is required", code="config_missing")
    jobs = _jobs(runs)
    id = request_id or new_request_id()
    job = jobs.find(id) or jobs.add(
        train_spec(
            loaded,
            request_id=id,
            name=name,
            when="hold" if hold else "now" if now else "queue",
            run=None if name else run_of(loaded.config, runs),
        )
    )
    _tell(job.id, json=json, job=_plain(job))


@queue_app.command("list")
def list_all(
    ended: Annotated[bool, typer.Option("--ended", help="Those that have ended, too.")] = False,
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """List what waits and what runs, in order."""
    from luthier.cli import show

    jobs = _jobs(runs)
    jobs.settle()
    plan, found = jobs.plan(), jobs.all()
    if json:
        show.as_json(jobs=[_plain(job) for job in found], slots=plan.slots, holding=plan.holding)
        return
    shown = [job for job in found if ended or job.ended is None]
    rows = [("" if job.position is None else job.position, job.id, job.kind, job.state, job.run or "-",
             "-" if job.progress is None else f"{job.progress:.0%}", job.reason) for job in shown]  # fmt: skip
    show.table(rows, ("", "id", "kind", "state", "run", "done", "why"))
    if plan.holding:
        print("\nthe queue is held: nothing is begun; luthier queue release --all lets it go on")


@queue_app.command("show")
def show_one(id: Id, runs: Root = RUNS, json: AsJson = False) -> None:
    """Show one job: its command, how far it is, why it waits or ended, its last lines."""
    from dataclasses import fields

    from luthier.cli import show

    jobs = _jobs(runs)
    jobs.settle()
    job = jobs.get(_id(jobs, id))
    if json:
        show.as_json(job=_plain(job))
        return
    skipped = ("log_tail", "result")
    values = [(each.name, getattr(job, each.name)) for each in fields(job) if each.name not in skipped]
    show.table([(name, value) for name, value in values if value not in (None, "")], ("job", ""))
    print("\n".join(["", *job.log_tail]).rstrip() or f"\nlog: {jobs.log_path(job.id)}")


@queue_app.command()
def hold(
    id: Annotated[str, typer.Argument(help="Id of the job; none with --all.")] = "",
    all: Annotated[bool, typer.Option("--all", help="Begin nothing more.")] = False,
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """Keep a job, or all of them, from beginning."""
    _hold(id, runs, "hold", everything=all, json=json)


@queue_app.command()
def release(
    id: Annotated[str, typer.Argument(help="Id of the job; none with --all.")] = "",
    all: Annotated[bool, typer.Option("--all", help="Begin jobs again.")] = False,
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """Let a job that is held, or all of them, wait for their turn again."""
    _hold(id, runs, "release", everything=all, json=json)


def _hold(id: str, runs: Path, action: str, *, everything: bool, json: bool) -> None:
    from luthier.core.errors import ConfigError

    if bool(id) == everything:
        raise ConfigError(f"luthier queue {action} takes the id of a job, or --all")
    if not everything:
        _act(id, action, runs, json=json)
        return
    plan = _jobs(runs).change_queue(holding=action == "hold")
    _tell("held" if plan.holding else "released", json=json, holding=plan.holding)


@queue_app.command()
def stop(
    id: Id,
    kill: Annotated[bool, typer.Option("--kill", help="At once, without a checkpoint.")] = False,
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """End a job that runs; a training saves first."""
    _act(id, "kill" if kill else "stop", runs, json=json)


def _of_one_job(action: str, said: str) -> None:
    """Add the command that does `action` to a job, and nothing more."""

    def command(id: Id, runs: Root = RUNS, json: AsJson = False) -> None:
        _act(id, action, runs, json=json)

    queue_app.command(action, help=said)(command)


_of_one_job("cancel", "Take a job out that has not begun.")
_of_one_job("save", "Let a training save a checkpoint and go on.")
_of_one_job("retry", "Do again what failed or was stopped, as a new job; a training goes on from its last checkpoint.")
_of_one_job("forget", "Take a job that has ended out of the list; its run stays.")


@queue_app.command()
def move(
    id: Id,
    position: Annotated[int, typer.Argument(min=0, help="Place in the queue, from 0 on.")],
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """Put a job that waits at another place."""
    jobs = _jobs(runs)
    plan = jobs.move(_id(jobs, id), position)
    _tell("\n".join(plan.order), json=json, order=plan.order)


@queue_app.command()
def slots(
    number: Annotated[int, typer.Argument(help="How many jobs may run at once; models that are served do not count.")],
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """Say how many jobs may run at once."""
    plan = _jobs(runs).change_queue(slots=number)
    _tell(plan.slots, json=json, slots=plan.slots)


@queue_app.command("run")
def run_all(runs: Root = RUNS, json: AsJson = False) -> None:
    """Begin jobs in their turn until none waits or runs; Ctrl-C leaves those that run alone.

    The exit code is 1 where a job failed that was under way meanwhile.
    """
    from luthier.cli import show
    from luthier.core.errors import Interrupted
    from luthier.core.log import logger

    jobs = _jobs(runs)
    try:
        found = _follow(jobs)
    except Interrupted:
        logger.info("jobs that run go on; `luthier queue list` shows them, `luthier queue run` watches them again")
        raise
    if json:
        show.as_json(jobs=[_plain(job) for job in found])
    if any(job.state in ("failed", "crashed") for job in found):
        raise typer.Exit(1)


def _follow(jobs: Jobs) -> list[JobView]:
    """Begin jobs and say what becomes of them, until nothing is left to wait for; return those that were under way."""
    import time

    from luthier.core.log import logger

    seen: dict[str, str] = {}
    while True:
        jobs.tick()
        found = [job for job in jobs.all() if job.ended is None or job.id in seen]
        for job in found:
            if seen.get(job.id) != job.state:
                why = f" ({job.reason})" if job.reason else ""
                logger.info("%s %s: %s%s", job.id, job.run or job.name, job.state, why)
            seen[job.id] = job.state
        running = any(job.ended is None and job.position is None and job.kind != "serve" for job in found)
        if not running and jobs.plan().holding:
            logger.info("the queue is held: nothing more is begun; `luthier queue release --all` lets it go on")
            return found
        if not running and not any(job.state == "queued" for job in found):
            return found
        time.sleep(_LOOK_SECONDS)


def _act(id: str, action: str, runs: Path, *, json: bool) -> None:
    jobs = _jobs(runs)
    job = jobs.act(_id(jobs, id), action)
    _tell(f"{job.id}: {job.state}", json=json, job=_plain(job))


def _tell(text: object, *, json: bool, **values: Any) -> None:
    """Print `text`, or `values` where JSON was asked for."""
    from luthier.cli import show

    show.as_json(**values) if json else print(text)


def _id(jobs: Jobs, beginning: str) -> str:
    """Return the id of the job that begins so. Raises RunError where there is none, or several."""
    from luthier.core.errors import RunError

    ids = [job.id for job in jobs.files()]
    found = [beginning] if beginning in ids else [id for id in ids if beginning and id.startswith(beginning)]
    if len(found) > 1:
        raise RunError(f"{beginning!r} begins {len(found)} ids: {', '.join(sorted(found)[:8])}", code="job_ambiguous")
    return found[0] if found else beginning


def _plain(job: JobView) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(job)


def _jobs(runs: Path) -> Jobs:
    from luthier.runs.jobs import Jobs

    return Jobs(runs.expanduser().resolve())
