"""Runs over HTTP: the list, one run, why it ended, whether it goes on, and what may be done to it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import Page, asking
from helpers import wait_for
from run_folders import SETTINGS, append, line, make_run, set_status

from luthier.runs.job_files import JobSpec
from luthier.runs.jobs import Jobs
from luthier.runs.launch import identity_of
from luthier.runs.manifest import seal

SECRET = "hf_" + "aB3dE6" * 5


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        yield found


def runs(page: Page) -> Path:
    return page.state.roots.runs


def add_checkpoint(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"w" * 100)
    (folder / "state.json").write_text(json.dumps({"step": step, "identity": {"data": "rows-1"}}))
    seal(folder, step)
    return folder


def test_the_list(page: Page) -> None:
    assert page.get("/runs") == {"runs": [], "total": 0, "tags": [], "models": [], "bytes": 0, "rebuilding": False}
    for name, state in [("a", "done"), ("b", "failed"), ("c", "running")]:
        make_run(runs(page), name, state=state)
    (runs(page) / "no run").mkdir()
    found = page.get("/runs", sort="name", descending=False)
    assert [(row["id"], row["state"]) for row in found["runs"]] == [("a", "done"), ("b", "failed"), ("c", "running")]
    assert found["runs"][0]["loss"] == pytest.approx(0.1)
    assert [row["id"] for row in page.get("/runs", state="failed,running", sort="name")["runs"]] == ["c", "b"]
    assert page.get("/runs", q="rank:8", count=1)["total"] == 3
    assert page.get("/runs", q="nothing")["total"] == 0
    page.http.patch("/api/runs/a", json={"archived": True, "tags": ["x"]})
    assert {row["id"] for row in page.get("/runs")["runs"]} == {"b", "c"}
    assert {row["id"] for row in page.get("/runs", archived="all")["runs"]} == {"a", "b", "c"}
    assert page.get("/runs", archived="true", tag="x")["tags"] == ["x"]


@pytest.mark.parametrize(
    "asked",
    [
        {"count": -1},
        {"count": 10**6},
        {"start": "x"},
        {"archived": "perhaps"},
        {"sort": "password"},
        {"descending": "up"},
        {"since": "yesterday"},
        {"since": "nan"},
        {"until": "2026-02-30"},
    ],
)
def test_questions_that_are_none(page: Page, asked: dict[str, Any]) -> None:
    page.get("/runs", 422, **asked)


def test_runs_of_a_model_and_of_some_days(page: Page) -> None:
    for name, model, created in [("a", "tiny", "2026-01-01"), ("b", "a,b", "2026-01-02"), ("c", "tiny", "2026-01-03")]:
        run = make_run(runs(page), name, settings={**SETTINGS, "model": {"model_name_or_path": model}})
        set_status(run, started=f"{created}T12:00:00.000+00:00")

    def found(**asked: str) -> list[str]:
        return [row["id"] for row in page.get("/runs", sort="name", descending=False, **asked)["runs"]]

    assert page.get("/runs")["models"] == ["a,b", "tiny"]
    assert found(model="a,b") == ["b"]
    assert found(model="tiny", since="2026-01-02T00:00:00Z") == ["c"]
    assert found(since="1767268800", until="2026-01-02T12:00:01Z") == ["a", "b"]
    problem = page.get("/runs", 422, until="31.12.2026")
    assert (problem["code"], problem["message"].partition(";")[0]) == ("run_date", "until: '31.12.2026' is no date")


def test_one_run(page: Page) -> None:
    settings = {**SETTINGS, "model": {"model_name_or_path": "tiny", "hub_token": SECRET}, "train": {"x": f"a {SECRET}"}}
    run = make_run(runs(page), "a", settings=settings, note=f"token={SECRET}")
    with (run / "log.txt").open("a") as file:
        file.write(f"asked with {SECRET}\n")
    found = page.get("/runs/a")
    assert found["metrics"] == ["loss"]
    assert (found["config"]["tuning"], found["config"]["model"]["hub_token"]) == ({"name": "lora", "rank": 8}, "***")
    assert yaml.safe_load(found["yaml"])["model"]["hub_token"] == "***"
    assert found["command"].startswith("luthier train")
    assert page.get("/runs/a/log", limit=1)["lines"] == ["asked with ***"]
    everything = json.dumps([found, page.get("/runs/a/log"), page.get("/compare", runs="a,a")])
    assert SECRET not in everything


ENDS = [
    ({"state": "failed", "error_code": "disk_full", "error": "5 bytes free"}, "the disk was full: 5 bytes free"),
    ({"state": "failed", "error_code": "out_of_memory", "error": "x"}, "memory was not enough: x"),
    (
        {"state": "failed", "error_code": "nonfinite", "error": "loss of step 3"},
        "a number was not finite: loss of step 3",
    ),
    ({"state": "failed", "error_code": "data", "error": "row 3 is broken"}, "row 3 is broken"),
    ({"state": "failed", "error_code": "KeyError"}, "KeyError"),
    ({"state": "failed", "error": "braces {x} and {0}"}, "braces {x} and {0}"),
    ({"state": "stopped", "stop_reason": "signal 15"}, "stopped as asked; a checkpoint was saved before"),
    (
        {"state": "running", "process": None},
        "its process is gone without a word: killed by the kernel for memory, or by hand",
    ),
    ({"state": "done"}, ""),
]


@pytest.mark.parametrize(("status", "reason"), ENDS)
def test_why_it_ended(page: Page, status: dict[str, Any], reason: str) -> None:
    run = make_run(runs(page), "a")
    set_status(run, **status)
    found = page.get("/runs/a")
    assert found["reason"] == reason
    ended_badly = status["state"] in ("failed", "running")
    assert found["state"] == ("crashed" if status["state"] == "running" else status["state"])
    assert found["log_tail"] == ([f"line {i}" for i in range(1, 21)] if ended_badly else [])


def test_whether_it_can_go_on(page: Page) -> None:
    run = make_run(runs(page), "a", state="stopped")

    def look() -> tuple[bool, str]:
        found = page.get("/runs/a")
        return found["resumable"], found["blocker"]

    assert look() == (False, "it had not saved a checkpoint yet; duplicate it to start anew")
    folder = add_checkpoint(run, 5)
    assert look() == (True, "")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"w" * 99)
    assert look() == (
        False,
        "no checkpoint is whole; of checkpoint-5: adapter_model.safetensors has 99 bytes, 100 expected",
    )
    weights.write_bytes(b"w" * 99 + b"x")
    assert page.get("/runs/a")["checkpoints"][0]["verified"] is True, "sizes alone are looked at"
    deep = page.post("/runs/a/verify", {})[0]
    assert (deep["verified"], "hash" in deep["damage"]) == (False, True)
    set_status(run, state="done")
    assert look()[1].startswith("it is finished")
    make_run(runs(page), "b", state="running")
    assert page.get("/runs/b")["blocker"] == "it is at work: running"


def test_curves(page: Page) -> None:
    run = make_run(runs(page), "a", steps=4)
    add_checkpoint(run, 2)
    append(run, line(5, 5, loss=None, nonfinite=True, tokens=50), line(6, 6, loss=9.0, eval_loss=2.0, tokens=60))
    found = page.get("/runs/a/curves", names="loss,none")
    loss, nothing = found["curves"]
    assert loss == {"name": "loss", "x": [1, 2, 3, 4, 5, 6], "y": [1, 0.5, 0.3333, 0.25, None, 9], "points": 6}
    assert (nothing["x"], found["last_seq"]) == ([], 6)
    assert found["marks"] == [{"kind": "checkpoint", "step": 2, "tokens": 20, "time": 1.0}]
    assert page.get("/runs/a/curves", names="eval_loss", x="tokens")["curves"][0]["x"] == [60]
    assert page.get("/runs/a/curves", names="loss", **{"from": 2, "to": 3})["curves"][0]["x"] == [2, 3]
    for wrong in ({"x": "epoch"}, {"points": 0}, {"points": 10**9}, {"from": "a"}):
        page.get("/runs/a/curves", 422, **wrong)


def test_the_log_forwards_and_backwards(page: Page) -> None:
    run = make_run(runs(page), "a")
    last = page.get("/runs/a/log", limit=3)
    assert last["lines"] == ["line 18", "line 19", "line 20"]
    earlier = page.get("/runs/a/log", limit=2, before=last["begin"])
    assert earlier["lines"] == ["line 16", "line 17"]
    assert page.get("/runs/a/log", after=last["offset"])["lines"] == []
    with (run / "log.txt").open("ab") as file:
        file.write(b"\x1b[31mred\x1b[0m\x07\n 10%\r 20%\r\n\xff\xfe\nhalf")
    found = page.get("/runs/a/log", after=last["offset"])
    assert found["lines"] == ["red", " 20%", "\ufffd\ufffd"]
    with (run / "log.txt").open("ab") as file:
        file.write(b" a line\n" + b"x" * 3_000_000 + b"\nend\n")
    assert page.get("/runs/a/log", after=found["offset"], limit=1)["lines"] == ["half a line"]
    assert page.get("/runs/a/log", limit=1)["lines"] == ["end"]
    (run / "log.txt").unlink()
    assert page.get("/runs/a/log") == {"lines": [], "offset": 0, "begin": 0}


def test_answers(page: Page) -> None:
    run = make_run(runs(page), "a")
    groups = [(1, 0.5), (1, 0.1), (2, 0.9), (3, 0.2), (2, 0.7)]
    lines = [
        {"step": step, "prompt": f"p{i}", "completions": [{"reward": reward}]}
        for i, (step, reward) in enumerate(groups)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines) + '{"step": 4, "half')

    def prompts(**asked: Any) -> list[str]:
        return [each["prompt"] for each in page.get("/runs/a/samples", **asked)["groups"]]

    assert prompts() == ["p0", "p1", "p4"], "the run went back to step 2"
    assert (prompts(step=1), prompts(order="best", count=2), prompts(order="worst", start=2)) == (
        ["p0", "p1"],
        ["p4", "p0"],
        ["p4"],
    )
    found = page.get("/runs/a/samples", step=2)
    assert (found["steps"], found["total"]) == ([1, 2], 1)
    assert page.get("/runs/a")["samples"] == 3
    page.get("/runs/a/samples", 422, order="prettiest")


def test_names_and_notes(page: Page) -> None:
    make_run(runs(page), "a")
    change = {"name": "Ä 你好 🙂", "notes": "<script>alert(1)</script>", "tags": ["x", "x"], "pinned": True}
    found = page._read(page.http.patch("/api/runs/a", json=change), 200)
    assert (found["name"], found["notes"], found["tags"], found["pinned"]) == (*list(change.values())[:2], ["x"], True)
    for wrong in ({"name": ""}, {"name": "x" * 201}, {"tags": ["x"] * 51}, {"other": 1}, {"name": "a\u202eb"}):
        assert page.http.patch("/api/runs/a", json=wrong).status_code == 422


def test_deleting_and_bringing_back(page: Page) -> None:
    run = make_run(runs(page), "a")
    (run / "big").write_bytes(b"x" * 1000)
    dry = page.get("/runs/a") and page.http.delete("/api/runs/a", params={"dry_run": True}).json()
    assert (dry["done"], dry["undo_until"], dry["bytes"] > 1000, run.exists()) == (False, None, True, True)
    gone = page.delete("/runs/a")
    assert (gone["done"], gone["bytes"], run.exists()) == (True, dry["bytes"], False)
    page.get("/runs/a", 404)
    assert page.post("/runs/a/undelete", {})["id"] == "a"
    page.post("/runs/a/undelete", {}, 404)
    make_run(runs(page), "b", state="running")
    assert page.delete("/runs/b", 409)["code"] == "run_locked"


@pytest.mark.parametrize(
    ("action", "number"),
    [("stop", signal.SIGTERM), ("pause", signal.SIGTERM), ("kill", signal.SIGKILL), ("save", signal.SIGUSR1)],
)
def test_signals_reach_the_process_of_the_run(page: Page, action: str, number: int) -> None:
    run = make_run(runs(page), "a", state="running")
    child = subprocess.Popen(["sleep", "60"])
    identity = identity_of(child.pid)
    assert identity is not None
    set_status(run, process=identity.as_dict())
    page.post("/runs/a/action", {"action": action})
    assert child.wait(5) == -number


def test_a_stranger_with_the_same_number_is_not_touched(page: Page) -> None:
    run = make_run(runs(page), "a", state="running")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        identity = identity_of(stranger.pid)
        assert identity is not None
        set_status(run, process={**identity.as_dict(), "ticks": identity.ticks - 1})
        assert page.post("/runs/a/action", {"action": "kill"}, 409)["code"] == "run_state"
        assert stranger.poll() is None
        set_status(run, process={**identity.as_dict(), "host": "elsewhere"})
        assert page.post("/runs/a/action", {"action": "kill"}, 409)["code"] == "run_elsewhere"
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("broken", ["status.json", "config.yaml", "events.jsonl", "samples.jsonl", "notes.json"])
def test_damaged_files_do_not_hide_a_run(page: Page, broken: str) -> None:
    run = make_run(runs(page), "a")
    (run / broken).write_bytes(b"{\xff: [\0")
    assert page.get("/runs", archived="all")["total"] == 1
    assert page.get("/runs/a")["id"] == "a"
    page.get("/runs/a/curves")
    page.get("/runs/a/samples")
    assert page.get("/compare", runs="a")["runs"][0]["id"] == "a"


def test_a_run_that_waits(page: Page) -> None:
    (page.data / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    values = {
        **SETTINGS,
        "data": {"dataset": [str(page.data / "rows.jsonl")]},
        "train": {},
        "model": {"model_name_or_path": "m"},
    }
    asked = {"request_id": "request-1", "kind": "train", "name": "one", "when": "hold", "values": values}
    run = page.post("/jobs", asked)["run"]
    found = page.get(f"/runs/{run}")
    assert (found["state"], found["job"], found["blocker"]) == ("queued", "request-1", "it has not begun yet")
    assert found["config"]["tuning"]["rank"] == 8
    assert page.get(f"/runs/{run}/curves")["curves"] == page.get(f"/runs/{run}/files") == []
    assert page.get(f"/runs/{run}/log")["lines"] == page.get(f"/runs/{run}/samples")["groups"] == []
    assert page.post(f"/runs/{run}/action", {"action": "resume", "request_id": "x"}, 422)["field"] == "request_id"
    assert page.post(f"/runs/{run}/action", {"action": "stop"})["state"] == "never started"
    page.get(f"/runs/{run}", 404)


def test_until_its_process_has_ended_a_run_is_stopping(page: Page) -> None:
    state = page.state
    run = make_run(runs(page), "a", state="stopped")
    job = state.jobs.add(JobSpec(request_id="train-01", kind="train", command=("sleep", "60"), run="a", when="now"))
    wait_for(lambda: state.jobs.get(job.id).state == "running")
    # What its status says is of an earlier process: this one has not said a word yet.
    assert page.get("/runs/a")["state"] == page.get("/runs")["runs"][0]["state"] == "starting"
    for said in ("stopped", "failed"):
        set_status(run, state=said, updated=datetime.now(UTC).isoformat())
        found = page.get("/runs/a")
        assert (found["state"], found["blocker"]) == ("stopping", "it is at work: stopping")
        assert page.get("/runs")["runs"][0]["state"] == page.get("/compare", runs="a")["runs"][0]["state"] == "stopping"
    set_status(run, state="done")
    assert page.get("/runs/a")["state"] == "done"
    set_status(run, state="stopped")
    state.jobs.act(job.id, "kill")
    wait_for(lambda: page.get("/runs/a")["state"] == "stopped")


def test_machine_and_doctor(page: Page) -> None:
    found = page.get("/machine")
    assert 0 < found["memory_available"] <= found["memory_total"]
    assert 0 <= found["load"] <= 1
    assert found["processors"] > 0


@pytest.mark.slow
def test_doctor(page: Page) -> None:
    found = page.get("/doctor")
    assert any(each["what"] == "luthier" for each in found["checks"])
    assert found["packages"]["torch"]
    assert all(found["licences"].values())


def test_the_server_never_loads_torch() -> None:
    code = (
        "import sys, tempfile, pathlib\n"
        "from luthier.server.ui.run import Options, make_state\nfrom luthier.server.ui.app import make_app\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "make_app(make_state(Options(runs=folder / 'runs', token_file=folder / 'token')))\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'matplotlib') if name in sys.modules])"
    )
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_jobs_are_looked_at_while_the_server_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[int] = []

    def tick(_: Jobs) -> list[str]:
        ticks.append(1)
        if len(ticks) == 1:
            raise OSError(28, "No space left on device")
        return []

    monkeypatch.setattr(Jobs, "tick", tick)
    with asking(tmp_path):
        wait_for(lambda: len(ticks) > 1)
    seen = len(ticks)
    time.sleep(1.2)
    assert len(ticks) <= seen + 1
