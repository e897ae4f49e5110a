"""The stream of changes: names of what is different, told once, to as many readers as there are."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from asking import Page, asking
from helpers import wait_for

from luthier.runs import notes, trash
from luthier.runs.job_files import JobSpec
from luthier.server.ui import changes
from luthier.server.ui.changes import MOST_WAITING, Changes, Reader, Sight


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        yield found


def make(page: Page, name: str, **status: Any) -> Path:
    run = page.state.roots.runs / name
    run.mkdir()
    (run / "config.yaml").write_text("objective: {name: sft}\n")
    (run / "status.json").write_text(json.dumps({"state": "done", **status}))
    return run


def test_each_change_is_seen_once(page: Page) -> None:
    state = page.state
    run, sight = make(page, "a"), Sight(state)
    assert sight.look() == {}
    assert sight.look() == {}
    notes.change(run, name="new")
    # Whoever else has refreshed the index in between does not take the change away.
    state.index.refresh()
    assert sight.look() == {("runs", "a"): False}
    assert sight.look() == {}
    make(page, "b")
    trash.delete(state.roots.runs, "a")
    assert sorted(sight.look()) == [("runs", "a"), ("runs", "b")]
    spec = JobSpec(request_id="serve-01", kind="serve", command=("true",), when="hold")
    state.jobs.add(spec)
    assert sorted(sight.look()) == [("jobs", "serve-01"), ("serving", "serve-01")]
    state.jobs.change_queue(slots=2)
    assert list(sight.look()) == [("queue", "")]
    state.jobs.act("serve-01", "cancel")
    assert sorted(sight.look()) == [("jobs", "serve-01"), ("serving", "serve-01")]


def test_a_folder_that_is_moved_away_and_the_end_of_a_process_are_changes(page: Page) -> None:
    state = page.state
    run = make(page, "a", state="stopped")
    job = state.jobs.add(JobSpec(request_id="train-01", kind="train", command=("sleep", "60"), run="a", when="now"))
    wait_for(lambda: state.jobs.tick() is not None and state.jobs.get(job.id).state == "running")
    sight = Sight(state)
    sight.look()
    state.jobs.act(job.id, "kill")
    wait_for(lambda: state.jobs.tick() is not None and state.jobs.get(job.id).state == "stopped")
    assert sorted(sight.look()) == [("jobs", "train-01"), ("runs", "a")]
    run.rename(state.roots.runs.parent / "elsewhere")
    assert list(sight.look()) == [("runs", "a")]
    (state.roots.runs.parent / "elsewhere").rename(run)
    assert list(sight.look()) == [("runs", "a")]


def test_a_slow_look_is_not_put_off_for_long(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LONGEST_SECONDS", 0.05)
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(changes, "SHARE", 1e-9)
    run, found = make(page, "a"), Changes(page.state)
    heard = asyncio.run(listen(found, lambda: run.rename(run.with_name("b"))))
    assert '{"kind":"runs","id":"a"}' in heard[1]


def test_what_only_grows_is_told_now_and_then_and_never_lost(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    run, sight = make(page, "a"), Sight(page.state)
    sight.look()
    now = [100.0]
    monkeypatch.setattr(changes.time, "monotonic", lambda: now[0])
    told = []
    for step in range(20):
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"seq": step, "kind": "train", "step": step, "loss": 1.0}) + "\n")
        told.append(sight.look())
        now[0] += 0.5
    assert told == [{("runs", "a"): True} if step % 4 == 0 else {} for step in range(20)]
    assert sight.look() == {("runs", "a"): True}
    assert sight.look() == {}


def test_a_reader_that_is_behind_is_bounded() -> None:
    reader = Reader()
    for i in range(100 * MOST_WAITING):
        reader.add({("runs", f"run-{i}"): True, ("jobs", "a"): True})
    said = reader.take().decode()
    assert len(said) < 100 * MOST_WAITING
    assert 'event: jobs\ndata: {"kind":"jobs","id":""}' in said
    reader.add({("queue", ""): False})
    assert reader.take() == b'event: queue\ndata: {"kind":"queue","id":""}\n\n'


def test_growth_and_more_in_one_is_more() -> None:
    reader, run = Reader(), ("runs", "a")
    for order in ((True, False), (False, True), (True, True)):
        for grown in order:
            reader.add({run: grown})
        assert (b'"grown":true' in reader.take()) == all(order)


async def listen(found: Changes, say: Any) -> list[str]:
    said: list[str] = []
    stream = found.follow()
    async for part in stream:
        said.append(part.decode())
        if len(said) == 1:
            await asyncio.sleep(0.3)
            say()
        if len(said) == 2:
            break
    await stream.aclose()
    return said


def test_readers_hear_and_leave_nothing_behind(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(changes, "SHARE", 1.0)
    run, found = make(page, "a"), Changes(page.state)

    async def both() -> list[list[str]]:
        heard = await asyncio.gather(listen(found, lambda: notes.change(run, name="new")), listen(found, lambda: None))
        await asyncio.sleep(0.3)
        return heard

    for begin, said in asyncio.run(both()):
        assert begin == "retry: 2000\n\n"
        assert said == 'event: runs\ndata: {"kind":"runs","id":"a"}\n\n'
    assert found._readers == set()
    assert found._task.done()


def test_memory_is_flat_over_a_thousand_reconnects(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.01)
    make(page, "a")
    found = Changes(page.state)

    async def connect(times: int) -> None:
        for _ in range(times):
            stream = found.follow()
            assert await anext(stream) == b"retry: 2000\n\n"
            await stream.aclose()
            await asyncio.sleep(0)

    async def measured() -> int:
        await connect(200)
        before = psutil.Process().memory_info().rss
        await connect(1000)
        return psutil.Process().memory_info().rss - before

    assert asyncio.run(measured()) < 8 << 20
    assert found._readers == set()


def test_the_stream_ends_with_the_server(page: Page) -> None:
    found = Changes(page.state)

    async def all_of_it() -> list[bytes]:
        page.state.closing.set()
        return [part async for part in found.follow()]

    assert asyncio.run(all_of_it()) == [b"retry: 2000\n\n"]
