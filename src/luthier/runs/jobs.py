"""Jobs: processes of their own, begun in their turn, told apart from strangers, and found again after any crash.

Several servers and commands may use one folder at once. What they decide, they decide holding the queue's lock; what a
job is, its files say.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import RunError
from luthier.core.faults import fault_point
from luthier.core.log import first_line, printable, say_once
from luthier.core.paths import beside
from luthier.runs import launch, notes, queue
from luthier.runs.job_files import ACTIVE, JOB, OWN, WAITING, JobFile, JobSpec, Now, State, create
from luthier.runs.job_view import JobView, view
from luthier.runs.outcome import outcome
from luthier.runs.process import Identity
from luthier.runs.store import read_status, slug

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

MOST_TRIES = 3
MOST_OF_A_LIST = 64 << 10
"""Bytes of a result that are told where all jobs are."""
_MOST_LAUNCHES = 3
_CLAIM_SECONDS = 20.0
"""A process that nobody saw begin has this long to claim its job, then another one is started; only one will run."""
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Jobs:
    """The jobs of a runs root. Any thread and any process may call at any time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / OWN / "jobs"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._files: dict[str, JobFile] = {}
        self._views: dict[str, tuple[Now, JobView]] = {}
        self._reading = threading.Lock()

    # ---- looking

    def all(self) -> list[JobView]:
        """Return every job: those that wait in their order, those that run, those that ended, newest first.

        Results of more than 64 KiB are left to `get`.
        """
        found = self.files()
        line = self._line(found)
        waiting = [job for job in found if job.id in line]
        waiting.sort(key=lambda job: line[job.id][0])
        running = sorted((job for job in found if job.now.state in ACTIVE), key=lambda job: job.now.launched or 0.0)
        ended = [job for job in found if job.id not in line and job not in running]
        ended.sort(key=lambda job: (job.now.ended or job.created, job.id), reverse=True)
        return [self._seen(job, *line.get(job.id, (None, ""))) for job in (*waiting, *running, *ended)]

    def get(self, id: str) -> JobView:
        """Return one job. Raises RunError (job_missing) where there is none of this id."""
        job = self._file(id)
        line = self._line(self.files()) if job.now.state in WAITING else {}
        return view(job, self.root, *line.get(id, (None, "")))

    def find(self, request_id: str) -> JobView | None:
        """Return the job that was made of a request; None where there is none."""
        return self.get(request_id) if any(job.id == request_id for job in self.files()) else None

    def for_run(self, run: str) -> JobView | None:
        """Return the newest job that trains a run; None where it was begun elsewhere."""
        found = [job for job in self.files() if job.spec.kind == "train" and job.spec.run == run]
        return view(max(found, key=lambda job: job.created), self.root) if found else None

    def plan(self) -> queue.Plan:
        """Return order, slots, and whether the queue is held."""
        return queue.read_plan(self.root)

    def path(self, id: str) -> Path:
        """Return the folder of a job. Raises RunError (job_missing) where there is none of this id."""
        return self._file(id).folder

    def log_path(self, id: str) -> Path:
        """Return where a job's standard error goes; it need not be there yet."""
        return self.path(id) / launch.LOG

    def port(self, id: str) -> int | None:
        """Return the port that was chosen for a job that serves, once it was started."""
        return self._file(id).now.port

    # ---- changing

    def add(self, spec: JobSpec) -> JobView:
        """Put a job into the queue; one that is there already by this request_id is returned as it is.

        Raises RunError for an id that is none, and for a training whose run another job is about to write.
        """
        if _ID.fullmatch(spec.request_id) is None:
            said = printable(spec.request_id)
            raise RunError(f"a request_id has 8 to 64 letters, digits, _ and -; found {said}", code="job_id")
        notes.checked(**_noted(spec))
        if not (self.folder / spec.request_id / JOB).exists():
            with queue.locked(self.root):
                if not (self.folder / spec.request_id / JOB).exists():
                    create(self.folder, self._placed(spec), time.time())
                    fault_point("job.created")
        if spec.when == "now":
            self.tick()
        return self.get(spec.request_id)

    def act(self, id: str, action: str) -> JobView:
        """Hold, release, cancel, stop, kill, save, retry or forget a job; return it, of retry the new one.

        Raises RunError where there is no such job, or where it is in no state for that.
        """
        if action == "retry":
            return self.add(self._again(self._file(id)))
        with queue.locked(self.root):
            self._settle()
            job = self._file(id)
            if action not in _ACTIONS:
                raise RunError(f"no action {printable(action)}; there are {', '.join([*_ACTIONS, 'retry'])}",
                               code="job_action")  # fmt: skip
            states, act = _ACTIONS[action]
            if job.now.state not in states:
                raise RunError(f"{action}: {id} is {job.now.state}; it would have to be {' or '.join(states)}",
                               code="job_state")  # fmt: skip
            if action == "forget":
                self._forget(job)
                return view(job, self.root)
            act(self, job)
            return view(job, self.root)

    def change_queue(
        self, *, slots: int | None = None, holding: bool | None = None, order: list[str] | None = None
    ) -> queue.Plan:
        """Change how many jobs run at once, whether any is begun, and the order. Raises RunError for what cannot be."""
        with queue.locked(self.root):
            plan = self.plan()
            waiting = [job.id for job in queue.in_order(plan, self.files())]
            plan = queue.changed(plan, waiting, slots=slots, holding=holding, order=order)
            queue.write_plan(self.root, plan)
        return plan

    def move(self, id: str, position: int) -> queue.Plan:
        """Put a waiting job at a place of the queue, from 0 on. Raises RunError where it does not wait."""
        waiting = [job.id for job in queue.in_order(self.plan(), self.files())]
        if self._file(id).id not in waiting:
            raise RunError(f"{id} does not wait (any more)", code="job_state")
        return self.change_queue(order=queue.moved(waiting, id, position))

    # ---- in time

    def tick(self) -> list[str]:
        """Notice what ended, begin what may begin; return the jobs that changed. Another process may be at it: none."""
        with queue.locked(self.root, wait=False) as mine:
            return [*self._settle(), *self._begin()] if mine else []

    def settle(self) -> list[str]:
        """Notice what ended, and begin nothing."""
        with queue.locked(self.root, wait=False) as mine:
            return self._settle() if mine else []

    def _begin(self) -> list[str]:
        chosen, _ = queue.choose(self.plan(), self.files())
        for job in chosen:
            self._launch(job)
        return [job.id for job in chosen]

    def _launch(self, job: JobFile) -> None:
        port = launch.free_port() if job.wants_port else None
        now = replace(job.now, state="starting", reason="", launches=job.now.launches + 1, launched=time.time(),
                      port=port, process=None)  # fmt: skip
        job.write(now)
        fault_point("job.starting")
        try:
            child = launch.start(job.folder, job.command(self.root, port), job.spec.environment, job.spec.folder)
        except OSError as error:
            where = f"the process could not be started: {error.strerror or error} ({error.filename or job.folder})"
            job.write(replace(now, state="failed", reason=where, ended=time.time(),
                              error={"code": "job_not_started", "message": where}))  # fmt: skip
            return
        fault_point("job.launched")
        self._children[job.id] = child
        identity = launch.identity_of(child.pid)
        job.write(replace(now, process=None if identity is None else identity.as_dict()))

    def _settle(self) -> list[str]:
        return [job.id for job in self.files() if job.now.state in ACTIVE and self._look(job)]

    def _look(self, job: JobFile) -> bool:
        """Write down that a job has begun, or ended; tell whether anything was written."""
        now, child = job.now, self._children.get(job.id)
        code = None if child is None else launch.reap(child)
        process = job.claimed()
        if process is None:
            coming = child is not None and code is None
            return not coming and self._unclaimed(job)
        if child is not None and child.pid == process.pid:
            has_ended = code is not None
        else:
            has_ended = launch.ended(process)
            code = launch.exit_code_of(process) if has_ended else None
        if has_ended:
            self._children.pop(job.id, None)
            self._write_end(job, code)
            return True
        known = Identity.from_dict(now.process)
        news = now.state == "starting" or known is None or not known.is_same(process)
        if news:
            state: State = "running" if now.asked == "" else "stopping"
            job.write(replace(now, state=state, started=now.launched, process=process.as_dict()))
            if now.asked:  # before it was known whom to ask
                launch.send(process, _ASKED[now.asked], group=True)
        return self._hand_notes(job) or news

    def _unclaimed(self, job: JobFile) -> bool:
        """Start a job anew whose process was never seen, as when a server was killed in between."""
        now = job.now
        if job.id not in self._children and abs(time.time() - (now.launched or 0.0)) < _CLAIM_SECONDS:
            return False
        self._children.pop(job.id, None)
        if now.asked:
            job.write(replace(now, state="stopped", reason="stopped before it began", ended=time.time()))
        elif now.launches < _MOST_LAUNCHES:
            job.write(replace(now, state="queued"))
        else:
            reason = f"never started: {now.launches} processes ended before they began"
            job.write(replace(now, state="crashed", reason=reason, ended=time.time()))
        return True

    def _write_end(self, job: JobFile, code: int | None) -> None:
        self._hand_notes(job)
        end = outcome(job, self.root, code)
        now = job.now
        started = now.started or now.launched or time.time()
        job.write(replace(now, state=end.state, reason=end.reason, error=end.error, exit_code=code, started=started,
                          ended=max(time.time(), started)))  # fmt: skip
        fault_point("job.ended")

    def _hand_notes(self, job: JobFile) -> bool:
        """Give a run the name, notes and tags that its training was asked for with, once it is there."""
        spec, now = job.spec, job.now
        if now.noted or spec.kind != "train" or spec.run is None or not (self.root / spec.run / "status.json").exists():
            return False
        wanted = {key: value for key, value in _noted(spec).items() if value}
        try:
            if wanted and not (self.root / spec.run / notes.FILE).exists():
                notes.change(self.root / spec.run, **wanted)
        except (RunError, OSError) as error:
            say_once(f"{spec.run}: its name, notes and tags could not be written: {first_line(error)}")
            return False
        job.write(replace(now, noted=True))
        return True

    # ---- parts

    def files(self) -> list[JobFile]:
        """Return the folders of all jobs, in no order; damaged ones are left out and said once."""
        with self._reading:
            names = os.listdir(self.folder) if self.folder.is_dir() else []
            for gone in self._files.keys() - set(names):
                del self._files[gone]
                self._views.pop(gone, None)
            for name in names:
                if name not in self._files and _ID.fullmatch(name):
                    try:
                        self._files[name] = JobFile(self.folder / name)
                    except RunError as error:
                        say_once(str(error))
            return list(self._files.values())

    def _file(self, id: str) -> JobFile:
        found = next((job for job in self.files() if job.id == id), None)
        if found is None:
            raise RunError(f"there is no job {printable(id)} in {self.root}", code="job_missing")
        return found

    def _placed(self, spec: JobSpec) -> JobSpec:
        """Return a job with the run directory that it gets. Raises RunError where another job writes it."""
        if spec.kind != "train" or spec.run is None:
            return spec
        taken = {job.spec.run: job for job in self.files()
                 if job.spec.kind == "train" and job.now.state in (*WAITING, *ACTIVE)}  # fmt: skip
        if spec.fresh_run:
            stem = slug(spec.run)
            names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
            reserved = {job.spec.run for job in self.files()}
            free = next(name for name in names if name not in reserved and not os.path.lexists(self.root / name))
            return replace(spec, run=free, fresh_run=False)
        if spec.run in taken:
            other = taken[spec.run]
            raise RunError(f"job {other.id} ({other.now.state}) writes {spec.run} already", code="job_conflict")
        return spec

    def _again(self, job: JobFile) -> JobSpec:
        spec = job.spec
        if job.now.state in (*WAITING, *ACTIVE):
            raise RunError(f"retry: {job.id} has not ended ({job.now.state})", code="job_state")
        if spec.tries >= MOST_TRIES:
            raise RunError(f"{job.id} was tried {spec.tries} times; mend what its log says, then begin a new one",
                           code="job_tries")  # fmt: skip
        first = spec.retry_of or job.id
        resume = "train.resume=auto"
        more = (resume,) if spec.kind == "train" and resume not in spec.command else ()
        command = (*spec.command[:-1], *more, spec.command[-1]) if more else spec.command
        files = {name: (job.folder / name).read_text(encoding="utf-8") for name in spec.files}
        return replace(spec, request_id=f"{first[:60]}-r{spec.tries + 1}", command=command, files=files, when="queue",
                       tries=spec.tries + 1, retry_of=first)  # fmt: skip

    def _forget(self, job: JobFile) -> None:
        gone = beside(job.folder)
        job.folder.rename(gone)  # half a folder is never taken for a job
        shutil.rmtree(gone, ignore_errors=True)

    def _seen(self, job: JobFile, position: int | None, reason: str) -> JobView:
        """Return a job as people see it; of one that has ended its files are read once."""
        now = job.now
        known, found = self._views.get(job.id, (None, None))
        if found is None or known is not now:
            found = view(job, self.root, position, reason, most_bytes=MOST_OF_A_LIST)
        if now.ended is not None:
            self._views[job.id] = (now, found)
        return found

    def _line(self, jobs: list[JobFile]) -> dict[str, tuple[int, str]]:
        """Return the place of each job that waits, and why it does."""
        plan = self.plan()
        reasons = queue.choose(plan, jobs)[1]
        return {job.id: (place, reasons.get(job.id, "")) for place, job in enumerate(queue.in_order(plan, jobs))}


def _noted(spec: JobSpec) -> dict[str, Any]:
    return {"name": spec.name, "notes": spec.notes, "tags": spec.tags}


# ---- actions

_ASKED = {"stop": signal.SIGTERM, "kill": signal.SIGKILL}


def _set(state: State, reason: str = "", *, ends: bool = False) -> Callable[[Jobs, JobFile], None]:
    def act(_: Jobs, job: JobFile) -> None:
        job.write(replace(job.now, state=state, reason=reason, ended=time.time() if ends else None))

    return act


def _stop(jobs: Jobs, job: JobFile) -> None:
    # A second signal would end it without a checkpoint: that is what kill is for.
    if job.now.asked == "":
        _signal(job, "stop", "it ends, after saving where it can")


def _kill(jobs: Jobs, job: JobFile) -> None:
    _signal(job, "kill", "it is ended at once")


def _signal(job: JobFile, asked: Literal["stop", "kill"], reason: str) -> None:
    process = job.process()
    try:
        job.write(replace(job.now, state="stopping", asked=asked, reason=reason))
    finally:  # where the disk is full it is to end all the more
        if process is not None:
            launch.send(process, _ASKED[asked], group=True)


def _save(jobs: Jobs, job: JobFile) -> None:
    run, process = job.spec.run, job.process()
    # Before it trains nobody listens to this signal, and it would end the process.
    if job.spec.kind != "train" or run is None or read_status(jobs.root / run).get("state") != "running":
        raise RunError(f"save: {job.id} has nothing to save yet; wait until it trains", code="job_state")
    if process is not None:
        launch.send(process, signal.SIGUSR1, group=False)


def _nothing(_: Jobs, job: JobFile) -> None:
    """Forget needs no word in the files that it takes away."""


_ACTIONS: dict[str, tuple[tuple[State, ...], Callable[[Jobs, JobFile], None]]] = {
    "hold": (WAITING, _set("held")),
    "release": (WAITING, _set("queued")),
    "cancel": (WAITING, _set("cancelled", "cancelled before it began", ends=True)),
    "stop": (ACTIVE, _stop),
    "kill": (ACTIVE, _kill),
    "save": (("running",), _save),
    "forget": (("done", "stopped", "failed", "crashed", "cancelled"), _nothing),
}
"""Action -> the states in which it means something, and what it does."""
