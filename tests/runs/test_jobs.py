"""Jobs as processes: each begun once, found again after any crash, never taken for a stranger."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import wait_for

from luthier.core.errors import RunError
from luthier.runs import launch
from luthier.runs.job_files import JobFile, JobSpec
from luthier.runs.jobs import Jobs
from luthier.runs.process import Identity

DOCUMENT = "import json; print(json.dumps({'schema': 1, 'answer': 42}))"
FAILING = (
    "import json, sys; [print('line', i, file=sys.stderr) for i in range(80)];"
    "print(json.dumps({'schema': 1, 'ok': False, 'error': {'code': 'data_bad_row', 'message': 'row 3 is empty'}}));"
    "sys.exit(2)"
)
SLEEPING = "import time; print('here', flush=True); time.sleep(600)"
COUNTING = "import os, time; open('begun', 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"


@pytest.fixture
def jobs(tmp_path: Path):
    found = Jobs(tmp_path)
    yield found
    for job in found.files():  # whatever a failed test has left
        process = job.process()
        if process is not None:
            launch.send(process, signal.SIGKILL, group=True)


def spec(id: str, code: str, **more: Any) -> JobSpec:
    return JobSpec(**{"request_id": id, "kind": "evaluate", "command": (sys.executable, "-c", code), **more})


def until(jobs: Jobs, id: str, *states: str) -> Any:
    def look() -> Any:
        jobs.tick()
        return jobs.get(id) if jobs.get(id).state in states else None

    return wait_for(look, 30)


def pid_of(jobs: Jobs, id: str) -> int:
    return json.loads((jobs.path(id) / "process.json").read_text())["pid"]


def test_a_job_that_ends_well_shows_what_it_printed(jobs: Jobs) -> None:
    jobs.add(spec("good-job", DOCUMENT))
    job = until(jobs, "good-job", "done")
    assert (job.exit_code, job.result, job.position, job.progress) == (0, {"schema": 1, "answer": 42}, None, 1.0)
    assert job.created <= job.started <= job.ended
    assert job.log_tail == []


def test_a_job_that_fails_shows_its_error_and_fifty_lines(jobs: Jobs) -> None:
    jobs.add(spec("bad-job1", FAILING))
    job = until(jobs, "bad-job1", "failed")
    assert (job.exit_code, job.error) == (2, {"code": "data_bad_row", "message": "row 3 is empty"})
    assert job.reason == "row 3 is empty"
    assert job.log_tail == [f"line {i}" for i in range(30, 80)]


def test_an_audit_that_found_errors_has_done_its_work(jobs: Jobs) -> None:
    jobs.add(spec("audit-job", "import json, sys; print(json.dumps({'num_errors': 3})); sys.exit(2)", kind="audit"))
    job = until(jobs, "audit-job", "done")
    assert (job.exit_code, job.result) == (2, {"num_errors": 3})


def test_a_command_that_is_not_there_fails_with_words(jobs: Jobs) -> None:
    jobs.add(JobSpec(request_id="no-such-thing", kind="export", command=("/no/such/program",)))
    job = until(jobs, "no-such-thing", "failed")
    assert "No such file" in "\n".join(job.log_tail)


def test_killed_from_elsewhere_is_a_crash_with_its_reason(jobs: Jobs) -> None:
    jobs.add(spec("victim-job", SLEEPING))
    until(jobs, "victim-job", "running")
    os.kill(pid_of(jobs, "victim-job"), signal.SIGKILL)
    job = until(jobs, "victim-job", "crashed")
    assert (job.exit_code, job.reason) == (-9, "killed (by the kernel for memory, or by hand)")


@pytest.mark.parametrize(("action", "code"), [("stop", -signal.SIGTERM), ("kill", -signal.SIGKILL)])
def test_stopped_as_asked(jobs: Jobs, action: str, code: int) -> None:
    jobs.add(spec("stop-job1", SLEEPING))
    until(jobs, "stop-job1", "running")
    assert jobs.act("stop-job1", action).state == "stopping"
    job = until(jobs, "stop-job1", "stopped")
    assert (job.exit_code, "asked" in job.reason) == (code, True)


def test_a_full_disk_keeps_nobody_from_ending_a_job(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.add(spec("full-job1", SLEEPING))
    until(jobs, "full-job1", "running")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JobFile, "write", full)
        with pytest.raises(OSError, match="No space"):
            jobs.act("full-job1", "kill")
    assert until(jobs, "full-job1", "crashed").exit_code == -signal.SIGKILL


def test_the_whole_group_ends_with_a_job(jobs: Jobs) -> None:
    child = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    )
    jobs.add(spec("family-job", child + "open('child', 'w').write(str(p.pid)); time.sleep(600)", folder=str(jobs.root)))
    until(jobs, "family-job", "running")
    orphan = int(wait_for(lambda: (jobs.root / "child").exists() and (jobs.root / "child").read_text()))
    os.kill(pid_of(jobs, "family-job"), signal.SIGKILL)
    until(jobs, "family-job", "crashed")
    wait_for(lambda: not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE)


def test_a_job_writes_to_files_and_reads_nothing(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_UI_TOKEN", "secret")
    code = (
        "import os, sys, json; print(json.dumps({'stdin': sys.stdin.read(), 'pipes': [n for n in (0, 1, 2) "
        "if os.readlink(f'/proc/self/fd/{n}').startswith('pipe')], 'leader': os.getsid(0) == os.getpid(), "
        "'open': len(os.listdir('/proc/self/fd')), 'token': os.environ.get('LUTHIER_UI_TOKEN'), "
        "'progress': os.environ['LUTHIER_PROGRESS']}))"
    )
    jobs.add(spec("files-job", code))
    found = until(jobs, "files-job", "done").result
    assert found == {"stdin": "", "pipes": [], "leader": True, "open": 4, "token": None,
                     "progress": str(jobs.path("files-job") / "progress.json")}  # fmt: skip


def test_much_output_does_not_stop_a_job(jobs: Jobs) -> None:
    jobs.add(spec("loud-job1", "import sys\nfor i in range(5000): print('x' * 200, file=sys.stderr)\nprint('{}')"))
    assert until(jobs, "loud-job1", "done").exit_code == 0
    assert jobs.log_path("loud-job1").stat().st_size == 5000 * 201


def test_large_results_are_told_where_one_job_is_asked_for(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.add(spec("large-out", "print('{\"rows\": [' + '1, ' * 40_000 + '1]}')"))
    jobs.add(spec("small-out", DOCUMENT))
    jobs.change_queue(slots=2)
    until(jobs, "large-out", "done")
    until(jobs, "small-out", "done")
    assert len(jobs.get("large-out").result["rows"]) == 40_001
    assert {job.id: job.result is None for job in jobs.all()} == {"large-out": True, "small-out": False}
    monkeypatch.setattr(JobFile, "document", None)  # what has ended is not read again
    assert len(jobs.all()) == 2


def test_what_a_job_needs_is_filled_in(jobs: Jobs) -> None:
    code = "import sys; print(__import__('json').dumps({'args': sys.argv[1:], 'text': open(sys.argv[1]).read()}))"
    command = (sys.executable, "-c", code, "{job}/config.yaml", "train.output_dir={run}", "serve.port={port}", "{job}x")
    jobs.add(spec("place-job", "", command=command, run="a-run", files={"config.yaml": "seed: 1\n"}))
    found = until(jobs, "place-job", "done").result
    file, run, port, other = found["args"]
    assert (found["text"], file) == ("seed: 1\n", str(jobs.path("place-job") / "config.yaml"))
    assert run == f"train.output_dir={jobs.root / 'a-run'}"
    assert port == f"serve.port={jobs.port('place-job')}"
    assert other == "{job}x"
    assert (jobs.path("place-job") / "config.yaml").stat().st_mode & 0o077 == 0


# ---- once, whatever happens


def test_fifty_adds_of_one_request_are_one_job(tmp_path: Path) -> None:
    views: list[Any] = []

    def add() -> None:
        views.append(Jobs(tmp_path).add(spec("same-request", DOCUMENT)))

    threads = [threading.Thread(target=add) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [view.id for view in views] == ["same-request"] * 50
    assert len({view.created for view in views}) == 1
    assert os.listdir(tmp_path / ".luthier/jobs") == ["same-request"]


def test_two_trainings_that_ask_for_one_name_get_two_runs(jobs: Jobs) -> None:
    (jobs.root / "my-run").mkdir()
    names = [jobs.add(spec(f"request-{i}", SLEEPING, kind="train", run="my run", fresh_run=True)).run for i in range(3)]
    assert names == ["my-run-2", "my-run-3", "my-run-4"]


def test_a_run_that_another_job_writes_is_refused(jobs: Jobs) -> None:
    jobs.add(spec("train-one", SLEEPING, kind="train", run="a-run"))
    with pytest.raises(RunError, match=r"job train-one \(queued\) writes a-run already"):
        jobs.add(spec("train-two", SLEEPING, kind="train", run="a-run"))
    jobs.act("train-one", "cancel")
    assert jobs.add(spec("train-two", SLEEPING, kind="train", run="a-run")).state == "queued"


TICKING = (
    "import sys, time; from pathlib import Path; from luthier.runs.jobs import Jobs\n"
    "jobs = Jobs(Path(sys.argv[1]))\n"
    "for _ in range(600): jobs.tick(); time.sleep(0.05)\n"
)


def server(root: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TICKING, str(root)], env={**os.environ, **environment})


def test_a_job_lives_on_when_its_server_is_killed_and_is_found_again(jobs: Jobs) -> None:
    jobs.add(spec("long-job1", COUNTING, folder=str(jobs.root)))
    first = server(jobs.root)
    wait_for(lambda: (jobs.root / "begun").exists() and jobs.get("long-job1").state == "running")
    first.kill()
    first.wait()
    process = psutil.Process(pid_of(jobs, "long-job1"))
    jobs.tick()
    assert (process.is_running(), jobs.get("long-job1").state) == (True, "running")
    jobs.act("long-job1", "kill")
    assert until(jobs, "long-job1", "stopped").reason == "ended at once, as asked"
    assert len((jobs.root / "begun").read_text().splitlines()) == 1


@pytest.mark.parametrize("point", ["job.starting", "job.launched"])
def test_a_server_killed_while_it_starts_a_job_starts_it_once(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr("luthier.runs.jobs._CLAIM_SECONDS", 1.0)
    jobs.add(spec("once-only", COUNTING, folder=str(jobs.root)))
    killed = server(jobs.root, LUTHIER_TESTING="1", LUTHIER_FAULT=f"{point}:kill")
    assert killed.wait(30) == -signal.SIGKILL
    until(jobs, "once-only", "running")
    time.sleep(1.5)
    jobs.tick()
    begun = wait_for(lambda: (jobs.root / "begun").exists() and (jobs.root / "begun").read_text())
    assert begun.splitlines() == [str(pid_of(jobs, "once-only"))]


def test_of_two_processes_for_one_job_one_leaves(jobs: Jobs) -> None:
    job = jobs.add(spec("twice-job", COUNTING, folder=str(jobs.root)))
    file = JobFile(jobs.path(job.id))
    children = [launch.start(file.folder, file.command(jobs.root, None), cwd=str(jobs.root)) for _ in range(8)]
    wait_for(lambda: sum(child.poll() is None for child in children) == 1)
    assert sorted(child.returncode for child in children if child.returncode is not None) == [75] * 7
    next(child for child in children if child.poll() is None).kill()
    assert len((jobs.root / "begun").read_text().splitlines()) == 1


def test_a_process_that_never_begins_is_tried_three_times(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_TESTING", "1")
    monkeypatch.setenv("LUTHIER_FAULT", "job.claim:kill")
    jobs.add(spec("stillborn", SLEEPING))
    job = until(jobs, "stillborn", "crashed")
    assert job.reason.startswith("never started: 3 processes")
    assert jobs.act("stillborn", "forget").id == "stillborn"
    assert jobs.all() == []


@pytest.mark.slow
def test_two_servers_start_forty_jobs_once_each(jobs: Jobs) -> None:
    code = "open(__import__('sys').argv[1], 'a').write('x')"
    for i in range(40):
        jobs.add(
            spec(f"many-{i:04}", "", command=(sys.executable, "-S", "-c", code, f"mark-{i}"), folder=str(jobs.root))
        )
    jobs.change_queue(slots=8)
    others = [server(jobs.root) for _ in range(2)]
    try:
        wait_for(lambda: all(view.state == "done" for view in jobs.all()), 60)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert [(jobs.root / f"mark-{i}").read_text() for i in range(40)] == ["x"] * 40


def test_an_end_that_the_parent_did_not_live_to_see(jobs: Jobs) -> None:
    jobs.add(spec("unseen-ok", "import time; time.sleep(1); print('{\"answer\": 1}')"))
    jobs.add(spec("unseen-no", "import time; time.sleep(1)", when="now"))
    other = server(jobs.root)
    wait_for(lambda: all(view.state == "running" for view in jobs.all()))
    other.kill()
    other.wait()
    good, bad = until(jobs, "unseen-ok", "done"), until(jobs, "unseen-no", "crashed", "done")
    assert good.result == {"answer": 1}
    # Where nobody reaps the orphan its exit code can still be read.
    assert (bad.state, bad.exit_code) in [("done", 0), ("crashed", None)]


# ---- strangers


@pytest.mark.parametrize("action", ["stop", "kill"])
def test_a_stranger_with_the_same_pid_is_never_signalled(jobs: Jobs, action: str) -> None:
    jobs.add(spec("reused-pid", SLEEPING))
    until(jobs, "reused-pid", "running")
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPING], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        path = jobs.path("reused-pid") / "process.json"
        real = json.loads(path.read_text())
        path.write_text(json.dumps({**real, "pid": stranger.pid}))
        with pytest.raises(RunError, match=f"{action}: reused-pid is crashed"):
            jobs.act("reused-pid", action)
        time.sleep(0.1)
        assert stranger.poll() is None
        os.kill(real["pid"], signal.SIGKILL)
    finally:
        stranger.kill()
        stranger.wait()


def test_a_signal_needs_the_right_start_and_boot() -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEPING], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        real = launch.identity_of(child.pid)
        assert real is not None
        for wrong in (
            Identity(real.pid, real.host, real.started - 60, real.boot),
            Identity(real.pid, real.host, real.started, "another boot"),
            Identity(real.pid, "another host", real.started, real.boot),
            Identity(real.pid, real.host, real.started, real.boot, real.ticks + 1),
        ):
            assert not launch.send(wrong, signal.SIGKILL, group=True)
        assert child.poll() is None
        after_a_jump_of_the_clock = Identity(real.pid, real.host, real.started + 86_400, real.boot, real.ticks)
        assert after_a_jump_of_the_clock.is_alive()
        assert launch.send(real, signal.SIGTERM, group=True)
        assert child.wait(10) == -signal.SIGTERM
    finally:
        child.kill()


# ---- retry, hold, cancel, forget


def test_retries_are_bounded_and_clicking_twice_is_one(jobs: Jobs) -> None:
    jobs.add(spec("crash-loop", FAILING, files={"config.yaml": "seed: 3\n"}))
    until(jobs, "crash-loop", "failed")
    second = jobs.act("crash-loop", "retry")
    assert jobs.act("crash-loop", "retry").id == second.id == "crash-loop-r2"
    assert (second.tries, (jobs.path(second.id) / "config.yaml").read_text()) == (2, "seed: 3\n")
    until(jobs, second.id, "failed")
    third = jobs.act(second.id, "retry")
    until(jobs, third.id, "failed")
    with pytest.raises(RunError, match="was tried 3 times"):
        jobs.act(third.id, "retry")


def test_what_the_process_before_was_doing_is_not_told(jobs: Jobs) -> None:
    status = jobs.root / "violin" / "status.json"
    status.parent.mkdir()
    status.write_text(json.dumps({"state": "crashed", "step": 5, "total": 10}))
    jobs.add(spec("goes-on-2", SLEEPING, kind="train", run="violin"))
    job = until(jobs, "goes-on-2", "running")
    assert (job.doing, job.progress) == ("", 0.5)
    process = Identity.of(pid_of(jobs, "goes-on-2")).as_dict()
    status.write_text(json.dumps({"state": "saving", "step": 6, "total": 10, "process": process}))
    assert (jobs.get("goes-on-2").doing, jobs.get("goes-on-2").progress) == ("saving", 0.6)


def test_a_training_that_is_tried_again_goes_on_from_its_checkpoint(jobs: Jobs) -> None:
    code = "import sys; print(__import__('json').dumps({'ok': False, 'error': {'message': ' '.join(sys.argv[1:])}})); sys.exit(1)"
    command = (sys.executable, "-c", code, "{job}/config.yaml", "train.output_dir={run}", "--json")
    jobs.add(spec("train-again", "", command=command, kind="train", run="r", files={"config.yaml": ""}))
    until(jobs, "train-again", "failed")
    again = until(jobs, jobs.act("train-again", "retry").id, "failed")
    said = again.error["message"].split()
    assert said[0] == str(jobs.path(again.id) / "config.yaml")
    assert said[1:] == [f"train.output_dir={jobs.root / 'r'}", "train.resume=auto", "--json"]


def test_hold_release_and_cancel(jobs: Jobs) -> None:
    jobs.add(spec("held-job1", DOCUMENT, when="hold"))
    jobs.tick()
    assert jobs.get("held-job1").state == "held"
    assert jobs.act("held-job1", "release").state == "queued"
    assert until(jobs, "held-job1", "done").exit_code == 0
    jobs.add(spec("never-job", DOCUMENT, when="hold"))
    assert jobs.act("never-job", "cancel").state == "cancelled"
    with pytest.raises(RunError, match="release: never-job is cancelled; it would have to be held or queued"):
        jobs.act("never-job", "release")
    jobs.tick()
    assert not (jobs.path("never-job") / "process.json").exists()


def test_what_is_asked_for_is_refused_with_words(jobs: Jobs) -> None:
    with pytest.raises(RunError, match="no job 'missing-one'"):
        jobs.get("missing-one")
    for bad in ("short", "../../escape", "a b c d e f g h", "x" * 65):
        with pytest.raises(RunError, match="a request_id has 8 to 64 letters"):
            jobs.add(spec(bad, DOCUMENT))
    with pytest.raises(RunError, match="control or bidirectional"):
        jobs.add(spec("good-name", DOCUMENT, name="a\u202eb"))
    jobs.add(spec("some-job1", DOCUMENT, when="hold"))
    with pytest.raises(RunError, match="no action 'explode'"):
        jobs.act("some-job1", "explode")
    with pytest.raises(RunError, match="save: some-job1 is held"):
        jobs.act("some-job1", "save")


# ---- damage


def test_a_damaged_state_never_runs_a_job_twice(jobs: Jobs) -> None:
    jobs.add(spec("damaged-1", "open('begun', 'a').write('x'); print('{\"a\": 1}')", folder=str(jobs.root)))
    until(jobs, "damaged-1", "done")
    (jobs.path("damaged-1") / "state.json").write_text('{"state": "do')
    job = until(Jobs(jobs.root), "damaged-1", "done")
    assert ((jobs.root / "begun").read_text(), job.result) == ("x", {"a": 1})


def test_a_damaged_or_deleted_folder_hides_nothing_else(jobs: Jobs) -> None:
    jobs.add(spec("whole-job", DOCUMENT, when="hold"))
    jobs.add(spec("gone-job1", DOCUMENT, when="hold"))
    (jobs.folder / "broken-job").mkdir()
    (jobs.folder / "broken-job/job.json").write_text("{")
    (jobs.folder / "another-job.0a1b2c.tmp").mkdir()
    shutil.rmtree(jobs.path("gone-job1"))
    assert [view.id for view in jobs.all()] == ["whole-job"]
    jobs.tick()


def test_a_full_disk_leaves_no_half_job(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_TESTING", "1")
    monkeypatch.setenv("LUTHIER_FAULT", "write.state.json:disk_full")
    with pytest.raises(OSError, match="No space"):
        jobs.add(spec("full-disk", DOCUMENT))
    assert os.listdir(jobs.folder) == []
    monkeypatch.delenv("LUTHIER_FAULT")
    assert jobs.add(spec("full-disk", DOCUMENT)).state == "queued"
