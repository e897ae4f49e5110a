"""The stream of a run: each event once, in order, from where a page left it; whatever happens to file, page or server."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from helpers import wait_for
from listening import Listening, listening
from run_folders import append, line, make_run, resident_bytes, set_status

from luthier.runs.job_files import JobSpec
from luthier.server.ui import sse, tails
from luthier.server.ui.tails import place_behind


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Listening]:
    with listening(tmp_path) as found:
        yield found


def numbers(events: Iterator[tuple[str, str, str]]) -> list[int]:
    return [int(id) for name, id, _ in events if name == "message"]


def test_a_run_that_has_ended_is_told_and_then_silent(live: Listening) -> None:
    make_run(live.state.roots.runs, "a", steps=5)
    found = list(live.stream("a"))
    assert [(name, id) for name, id, _ in found] == [("message", str(i)) for i in range(1, 6)] + [("status", "")]
    assert json.loads(found[2][2])["loss"] == pytest.approx(1 / 3, abs=1e-4)
    assert json.loads(found[-1][2])["state"] == "done"
    assert numbers(live.stream("a", after=3)) == [4, 5]
    assert numbers(live.stream("a", last=4, after=1)) == [5]
    assert httpx.get(f"{live.url}/api/runs/a/events", params={"after": 5}, headers=live.headers).status_code == 204
    append(live.state.roots.runs / "a", "damaged\n", '{"seq": 6, "half')
    assert httpx.get(f"{live.url}/api/runs/a/events", headers=live.headers | {"Last-Event-ID": "5"}).status_code == 204


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, "१", "0x1", "1 2"])
def test_numbers_that_are_none(live: Listening, last: str) -> None:
    make_run(live.state.roots.runs, "a")
    reply = httpx.get(f"{live.url}/api/runs/a/events", params={"after": last}, headers=live.headers)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "event_number"


def test_no_run_no_stream(live: Listening) -> None:
    assert httpx.get(f"{live.url}/api/runs/none/events", headers=live.headers).status_code == 404


def test_what_comes_is_told_as_it_comes(live: Listening) -> None:
    run = make_run(live.state.roots.runs, "a", steps=3, state="running")
    found: list[tuple[str, str, str]] = []
    reader = threading.Thread(target=lambda: found.extend(live.stream("a", after=3)))
    reader.start()
    for i in range(4, 8):
        text = line(i, i, loss=1.0)
        append(run, text[:20])
        time.sleep(0.2)
        append(run, text[20:])
    set_status(run, state="done")
    reader.join(10)
    assert not reader.is_alive()
    assert numbers(iter(found)) == [4, 5, 6, 7]
    states = [json.loads(data)["state"] for name, _, data in found if name == "status"]
    assert states == ["running", "done"]


def test_a_run_that_waits_is_listened_to_before_it_begins(live: Listening) -> None:
    state = live.state
    spec = JobSpec(request_id="train-01", kind="train", command=("true",), run="a", when="hold")
    state.jobs.add(spec)
    state.jobs.add(replace(spec, request_id="train-02", run="b"))
    found: dict[str, list[tuple[str, str, str]]] = {"a": [], "b": []}
    readers = [
        threading.Thread(target=lambda name=name: found[name].extend(live.stream(name)), daemon=True) for name in found
    ]
    for reader in readers:
        reader.start()
    time.sleep(1.5)
    assert all(reader.is_alive() for reader in readers)
    run = make_run(state.roots.runs, "a", steps=2, state="running")
    time.sleep(0.6)
    append(run, line(3, 3, loss=1.0))
    set_status(run, state="done")
    state.jobs.act("train-02", "cancel")
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()
    assert numbers(iter(found["a"])) == [1, 2, 3]
    assert json.loads(found["a"][-1][2])["state"] == "done"
    assert [json.loads(data) for _, _, data in found["b"]] == [{"state": "deleted"}]


def test_a_process_that_dies_without_a_word_is_noticed(live: Listening) -> None:
    import subprocess

    from luthier.runs.launch import identity_of

    run = make_run(live.state.roots.runs, "a", steps=3, state="running")
    child = subprocess.Popen(["sleep", "60"])
    identity = identity_of(child.pid)
    assert identity is not None
    set_status(run, process=identity.as_dict())
    stream = live.stream("a")
    assert json.loads(next(data for name, _, data in stream if name == "status"))["state"] == "running"
    child.kill()
    child.wait()
    began = time.monotonic()
    assert json.loads(next(data for name, _, data in stream if name == "status"))["state"] == "crashed"
    assert time.monotonic() - began < 5


def test_a_run_that_is_deleted_ends_its_stream(live: Listening) -> None:
    run = make_run(live.state.roots.runs, "a", steps=3, state="running")
    stream = live.stream("a")
    assert next(stream)[1] == "1"
    run.rename(run.with_name("elsewhere"))
    assert json.loads(list(stream)[-1][2])["state"] == "deleted"


def test_many_servers_one_after_the_other_tell_each_event_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "a", steps=1, state="running")
    total, found, last = 400, [], 0

    def write() -> None:
        for i in range(2, total + 1):
            append(run, line(i, i, loss=1.0))
            time.sleep(0.004)
        set_status(run, state="done")

    writer = threading.Thread(target=write)
    writer.start()
    while last < total:
        with listening(tmp_path) as live:
            end = time.monotonic() + random.Random(last).random()
            for name, id, _ in live.stream("a", last=last):
                if name == "message":
                    found.append(int(id))
                    last = int(id)
                if time.monotonic() > end and last < total - 50:
                    break
    writer.join()
    assert found == list(range(1, total + 1))


def test_the_place_behind_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "PART_BYTES", 300)
    draw = random.Random(0)
    path, lines = tmp_path / "events.jsonl", []
    for i in range(3, 600, 3):
        lines += [line(i, i, text="x" * draw.randrange(200))]
        lines += draw.choice([[], [], ["damaged\n"], ["\0" * 500 + "\n"], ["{}\n" * 30]])
    path.write_text("".join(lines))
    whole = path.read_bytes()
    for after in range(-1, 598):
        place = place_behind(path, after)
        behind = [number for each in whole[place:].split(b"\n") if (number := tails.seq_of(each)) is not None]
        before = [number for each in whole[:place].split(b"\n") if (number := tails.seq_of(each)) is not None]
        assert behind[:1] == [max(3, after // 3 * 3 + 3)][: after < 597]
        assert all(number <= after for number in before)
    assert place_behind(path, 10**9) == 0, "another file: from its beginning"
    assert place_behind(tmp_path / "none", 5) == 0


def test_damaged_lines_are_left_out(live: Listening) -> None:
    run = make_run(live.state.roots.runs, "a", steps=2)
    append(run, "\0\0\0\n", '{"seq": 3, "broken\n', '{"seq": "x"}\n', "[]\n", line(4, 4, text="x" * (2 << 20)))
    append(run, "\0\0" + line(5, 5, loss=0.5), '{"seq": 6, "half')
    assert numbers(live.stream("a")) == [1, 2, 5]


def test_text_cannot_break_out_of_an_event(live: Listening) -> None:
    run = make_run(live.state.roots.runs, "a", steps=1)
    text = "a\n\nevent: status\ndata: {}\r\r\u2028x"
    append(run, line(2, 2, text=text), '{"seq": 3,\r "step": 3}\n')
    found = list(live.stream("a"))
    assert [name for name, _, _ in found] == ["message", "message", "message", "status"]
    assert json.loads(found[1][2])["text"] == text


def test_secrets_of_the_status_are_masked(live: Listening) -> None:
    make_run(live.state.roots.runs, "a", steps=1, state="failed", error="hf_" + "aB3" * 10 + " is refused")
    assert "aB3" not in list(live.stream("a"))[-1][2]


def test_a_silent_stream_says_that_it_lives(live: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "ALIVE_SECONDS", 0.5)
    make_run(live.state.roots.runs, "a", steps=1, state="running")
    with httpx.stream("GET", f"{live.url}/api/runs/a/events", headers=live.headers, timeout=10) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "retry: 2000"
        assert next(each for each in lines if each.startswith(":")) == ": still there"


def test_watchers_share_one_look(live: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(live.state.roots.runs, "a", steps=1, state="running")
    looks: list[float] = []
    look = tails.Tail.look

    def counted(self: tails.Tail) -> bool:
        looks.append(time.monotonic())
        return look(self)

    monkeypatch.setattr(tails.Tail, "look", counted)
    found: list[list[int]] = [[] for _ in range(20)]
    readers = [threading.Thread(target=lambda each=each: each.extend(numbers(live.stream("a")))) for each in found]
    for reader in readers:
        reader.start()
    wait_for(lambda: looks)
    time.sleep(1.0)
    append(run, line(2, 2), line(3, 3))
    set_status(run, state="done")
    for reader in readers:
        reader.join(10)
    assert found == [[1, 2, 3]] * 20
    spread = looks[-1] - looks[0]
    assert len(looks) <= spread / tails.LOOK_SECONDS + 3
    before = len(looks)
    time.sleep(0.6)
    assert len(looks) <= before + 1, "nobody watches, and somebody looks"


def open_stream(live: Listening, after: int = 0) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    head = f"GET /api/runs/a/events?after={after} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {live.state.token}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def test_a_slow_reader_holds_nothing_and_keeps_nobody_waiting(live: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SEND_SECONDS", 1.0)
    run = make_run(live.state.roots.runs, "a", steps=1, state="running")
    append(run, *[line(i, i, text="x" * 1000) for i in range(2, 30_000)])
    list(zip(live.stream("a"), range(3), strict=False))
    before = resident_bytes()
    slow = [open_stream(live) for _ in range(20)]
    for each in slow:
        assert each.recv(10)
    began = time.monotonic()
    assert next(live.stream("a", after=29_990))[1] == "29991"
    assert time.monotonic() - began < 3
    assert resident_bytes() - before < 50_000_000
    for each in slow:
        each.close()


@pytest.mark.slow
def test_a_thousand_reconnects_leave_nothing_behind(live: Listening) -> None:
    make_run(live.state.roots.runs, "a", steps=2000, state="running")

    def visit(times: int) -> None:
        for number in range(times):
            with open_stream(live, after=number % 2000) as connection:
                connection.recv(100)

    visit(100)
    time.sleep(1)
    before = resident_bytes()
    threads_before = threading.active_count()
    visit(1000)
    wait_for(lambda: httpx.get(f"{live.url}/api/health").status_code == 200)
    time.sleep(2)
    assert resident_bytes() - before < 10_000_000
    assert threading.active_count() <= threads_before + 2
