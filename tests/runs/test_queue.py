"""The queue: in order, within slots and memory, held or not, and whole after any crash."""

import fcntl
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

from luthier.core.errors import RunError
from luthier.runs import launch, queue
from luthier.runs.job_files import JobSpec
from luthier.runs.jobs import Jobs

SLEEPING = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
QUICK = (sys.executable, "-S", "-c", "pass")
GB = 10**9


@pytest.fixture
def jobs(tmp_path: Path):
    found = Jobs(tmp_path)
    yield found
    for job in found.files():
        process = job.process()
        if process is not None:
            launch.send(process, 9, group=True)


def add(jobs: Jobs, *names: str, command: tuple[str, ...] = SLEEPING, **more: Any) -> None:
    for name in names:
        jobs.add(JobSpec(**{"request_id": f"job-{name:>04}", "kind": "train", "run": name, "command": command, **more}))


def waiting(jobs: Jobs) -> list[str]:
    return [view.id[4:].lstrip("0") for view in jobs.all() if view.position is not None]


def active(jobs: Jobs) -> list[str]:
    return sorted(view.run or view.id for view in jobs.all() if view.state in ("starting", "running"))


def reason(jobs: Jobs, name: str) -> str:
    return jobs.get(f"job-{name:>04}").reason


def kill(jobs: Jobs, name: str) -> None:
    jobs.act(f"job-{name:>04}", "kill")
    wait_for(lambda: [jobs.settle(), jobs.get(f"job-{name:>04}").state][1] == "stopped")


def test_one_at_a_time_in_order(jobs: Jobs) -> None:
    add(jobs, "a", "b", "c")
    for name, left in (("a", ["b", "c"]), ("b", ["c"]), ("c", [])):
        jobs.tick()
        jobs.tick()
        assert (active(jobs), waiting(jobs)) == ([name], left)
        kill(jobs, name)


def test_why_each_waits(jobs: Jobs) -> None:
    add(jobs, "a", "b", "c")
    jobs.tick()
    assert (reason(jobs, "b"), reason(jobs, "c")) == ("1 of 1 places are taken", "it waits behind another job")
    jobs.change_queue(holding=True)
    assert reason(jobs, "b") == "the queue is held"


def test_slots_serving_and_now(jobs: Jobs) -> None:
    jobs.change_queue(slots=2)
    add(jobs, "a", "b", "c")
    add(jobs, "s", kind="serve", run=None)
    add(jobs, "n", when="now")
    assert active(jobs) == ["a", "b", "job-000s", "n"]
    assert waiting(jobs) == ["c"]
    kill(jobs, "n")
    jobs.tick()
    assert active(jobs) == ["a", "b", "job-000s"]
    for kind in ("evaluate", "export", "audit"):
        add(jobs, kind, kind=kind, run=None)
    jobs.tick()
    assert active(jobs) == ["a", "b", "job-000s"]


def test_hold_all_and_hold_one(jobs: Jobs) -> None:
    jobs.change_queue(holding=True)
    add(jobs, "a", "b")
    assert jobs.tick() == []
    jobs.act("job-000a", "hold")
    jobs.change_queue(holding=False)
    jobs.tick()
    assert (active(jobs), waiting(jobs)) == (["b"], ["a"])
    jobs.act("job-000a", "release")
    kill(jobs, "b")
    jobs.tick()
    assert active(jobs) == ["a"]


def test_a_job_that_ends_lets_the_next_begin_though_the_first_is_held(jobs: Jobs) -> None:
    add(jobs, "a", "b", "c")
    jobs.tick()
    jobs.act("job-000b", "hold")
    kill(jobs, "a")
    jobs.tick()
    assert active(jobs) == ["c"]


def test_moved_and_ordered(jobs: Jobs) -> None:
    add(jobs, "a", "b", "c", "d", when="hold")
    jobs.move("job-000d", 0)
    assert waiting(jobs) == ["d", "a", "b", "c"]
    jobs.move("job-000d", 99)
    jobs.change_queue(order=["job-000c", "job-000a"])
    assert waiting(jobs) == ["c", "a", "b", "d"]
    assert [view.position for view in jobs.all()] == [0, 1, 2, 3]
    for order, said in ((["job-000x"], "names job-000x"), (["job-000a", "job-000a"], "one job twice")):
        with pytest.raises(RunError, match=said):
            jobs.change_queue(order=order)
    with pytest.raises(RunError, match="1 to 64 jobs"):
        jobs.change_queue(slots=0)
    jobs.act("job-000a", "cancel")
    with pytest.raises(RunError, match="does not wait"):
        jobs.move("job-000a", 0)
    assert waiting(jobs) == ["c", "b", "d"]


def test_the_order_outlives_index_and_server_and_a_lost_file_loses_no_job(jobs: Jobs) -> None:
    add(jobs, "a", "b", "c", when="hold")
    jobs.change_queue(order=["job-000c", "job-000a", "job-000b"], slots=3)
    (jobs.root / ".luthier/index.sqlite").write_bytes(b"garbage")
    assert waiting(Jobs(jobs.root)) == ["c", "a", "b"]
    for text in (None, "", "{", "[]", '{"order": 3, "slots": -1, "holding": "no"}', '{"order": [1, null, "job-000x"]}'):
        file = jobs.root / ".luthier/queue.json"
        file.unlink() if text is None else file.write_text(text)
        fresh = Jobs(jobs.root)
        assert (waiting(fresh), fresh.plan().slots, fresh.plan().holding) == (["a", "b", "c"], 1, False)


# ---- memory


def plan(jobs: Jobs, available: int) -> tuple[list[str], dict[str, str]]:
    begin, reasons = queue.choose(jobs.plan(), jobs.files(), lambda: available)
    return [job.spec.run or "" for job in begin], {id[4:].lstrip("0"): text for id, text in reasons.items()}


def test_a_job_waits_for_its_memory_and_says_so(jobs: Jobs) -> None:
    jobs.change_queue(slots=4)
    add(jobs, "big", memory_bytes=8 * GB)
    add(jobs, "small", memory_bytes=1 * GB)
    assert plan(jobs, 8 * GB) == ([], {
        "big": "it needs 8.0 GB of memory; 7.2 GB can be had now", "small": "it waits behind another job"})  # fmt: skip
    assert plan(jobs, 9 * GB) == (["big"], {"small": "it needs 1.0 GB of memory; 0.9 GB can be had now"})
    assert plan(jobs, 11 * GB) == (["big", "small"], {})


def test_memory_that_a_running_job_has_not_taken_yet_is_promised(jobs: Jobs) -> None:
    jobs.change_queue(slots=2)
    add(jobs, "a", memory_bytes=6 * GB)
    add(jobs, "b", memory_bytes=3 * GB)
    job = next(job for job in jobs.files() if job.spec.run == "a")
    jobs._launch(job)
    wait_for(lambda: [jobs.settle(), active(jobs)][1] == ["a"])
    begun, reasons = plan(jobs, 9 * GB)
    assert (begun, reasons["b"]) == ([], "it needs 3.0 GB of memory; 2.7 GB can be had now")
    assert plan(jobs, 10 * GB)[0] == ["b"]


def test_memory_is_that_of_the_control_group_where_it_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": {"": "1000"}, "memory.current": {"": "700"}, "memory.stat": {"inactive_file": "50"}}
    monkeypatch.setattr(queue, "_words", files.__getitem__)
    assert queue.available_memory() == 350
    files["memory.max"] = {"": "max"}
    assert queue.available_memory() > 10**6


# ---- many, and several at once


@pytest.mark.slow
def test_hundreds_of_jobs_are_begun_in_order_and_read_quickly(jobs: Jobs) -> None:
    jobs.change_queue(holding=True)
    for i in range(400):
        add(jobs, f"{i:04}", command=QUICK, run=f"r{i}")
    opened: list[str] = []
    real = Path.read_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: [opened.append(path.name), real(path)][1])
        assert [view.run for view in jobs.all()] == [f"r{i}" for i in range(400)]
        opened.clear()
        jobs.tick()
    assert "job.json" not in opened
    assert "state.json" not in opened
    jobs.change_queue(holding=False, slots=3)
    jobs.tick()
    assert [view.run for view in jobs.all() if view.position is None] == ["r0", "r1", "r2"]


def test_who_finds_the_queue_taken_leaves_it(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    add(jobs, "a", command=QUICK)
    with queue.locked(jobs.root) as mine:
        assert mine
        assert (jobs.tick(), jobs.settle()) == ([], [])
        monkeypatch.setattr(queue, "_PATIENCE_SECONDS", 0.1)
        with pytest.raises(RunError, match="has been held"):
            jobs.act("job-000a", "hold")
    assert jobs.tick() == ["job-000a"]


def test_a_job_does_not_inherit_the_lock(jobs: Jobs) -> None:
    add(jobs, "a")
    jobs.tick()
    wait_for(lambda: [jobs.settle(), jobs.get("job-000a").state][1] == "running")
    descriptor = os.open(jobs.root / ".luthier/queue.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_changes_from_many_threads_leave_a_whole_queue(jobs: Jobs) -> None:
    add(jobs, *"abcdefgh", when="hold")
    errors: list[Exception] = []

    def shuffle(name: str) -> None:
        try:
            for place in (0, 7, 3):
                Jobs(jobs.root).move(f"job-000{name}", place)
        except Exception as error:  # noqa: BLE001  a thread cannot raise for the test
            errors.append(error)

    threads = [threading.Thread(target=shuffle, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(waiting(jobs)) == list("abcdefgh")
    assert sorted(json.loads((jobs.root / ".luthier/queue.json").read_text())["order"]) == [
        f"job-000{c}" for c in "abcdefgh"
    ]
