"""The queue and the list of runs on the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import Jobs as Commands
from helpers import wait_for
from typer.testing import CliRunner

from luthier.cli.queue import queue_app
from luthier.cli.runs import runs_app
from luthier.core.errors import ConfigError, LuthierError, RunError
from luthier.runs import launch
from luthier.runs.job_files import JobSpec
from luthier.runs.jobs import Jobs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "run.yaml").write_text("model_name_or_path: tiny\ndataset: rows.jsonl\nmax_steps: 2\n")
    yield tmp_path
    for job in Jobs(tmp_path / "runs").files():
        process = job.process()
        if process is not None:
            launch.send(process, signal.SIGKILL, group=True)


def call(app: Any, *argv: str) -> Any:
    """What a command prints as JSON; its error is raised."""
    done = CliRunner().invoke(app, [*argv, "--json"])
    if isinstance(done.exception, LuthierError):
        raise done.exception
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def queue(*argv: str) -> Any:
    return call(queue_app, *argv)


def runs(*argv: str) -> Any:
    return call(runs_app, *argv)


def add(here: Path, id: str, code: str, **more: Any) -> None:
    command = (sys.executable, "-c", code)
    Jobs(here / "runs").add(JobSpec(**{"request_id": id, "kind": "train", "run": id, "command": command, **more}))


# ---- queue


def test_added_with_the_settings_of_the_file(here: Path) -> None:
    job = queue("add", "run.yaml", "lora_rank=4", "--name", "Erster Lauf", "--hold")["job"]
    assert (job["state"], job["run"], job["kind"], job["name"]) == ("held", "Erster-Lauf", "train", "Erster Lauf")
    file = here / "runs/.luthier/jobs" / job["id"] / "config.yaml"
    assert yaml.safe_load(file.read_text()) == {
        "model": {"model_name_or_path": "tiny"},
        "data": {"dataset": ["rows.jsonl"]},
        "train": {"max_steps": 2, "run_name": "Erster Lauf"},
        "tuning": {"name": "lora", "rank": 4},
        "objective": {"name": "sft"},
    }
    assert job["command"] == f"luthier train {file} train.output_dir={here / 'runs/Erster-Lauf'} --json"


def test_the_run_directory_that_the_file_names_is_taken(here: Path) -> None:
    assert queue("add", "run.yaml", "output_dir=runs/mine")["job"]["run"] == "mine"
    with pytest.raises(RunError, match=r"job .* \(queued\) writes mine already"):
        queue("add", "run.yaml", "output_dir=runs/mine")
    with pytest.raises(RunError, match="not directly in the folder of runs"):
        queue("add", "run.yaml", "output_dir=/tmp/elsewhere")
    (here / "runs/there").mkdir()
    (here / "runs/there/file").touch()
    with pytest.raises(RunError, match="has files; go on with resume=auto"):
        queue("add", "run.yaml", "output_dir=runs/there")
    assert queue("add", "run.yaml", "output_dir=runs/there", "resume=auto")["job"]["run"] == "there"
    assert queue("add", "run.yaml")["job"]["run"] == "tiny-rows"
    assert queue("add", "run.yaml")["job"]["run"] == "tiny-rows-2"


def test_bad_input_writes_nothing(here: Path) -> None:
    for argv, kind, said in (
        (["missing.yaml"], ConfigError, "does not exist"),
        (["run.yaml", "learnig_rate=1"], ConfigError, "did you mean 'learning_rate'"),
        (["model_name_or_path=tiny"], ConfigError, "dataset is required"),
        (["run.yaml", "--hold", "--now"], ConfigError, "opposites"),
        (["run.yaml", "--request-id", "../x"], RunError, "a request_id has"),
    ):
        with pytest.raises(kind, match=said):
            queue("add", *argv)
    assert not (here / "runs/.luthier/jobs").exists() or os.listdir(here / "runs/.luthier/jobs") == []
    with pytest.raises(RunError, match="no job 'x'"):
        queue("show", "x")
    with pytest.raises(ConfigError, match="takes the id of a job, or --all"):
        queue("hold")


def test_the_same_request_twice_is_one_job(here: Path) -> None:
    first, second = (queue("add", "run.yaml", "--request-id", "my-request")["job"] for _ in range(2))
    assert first == second
    assert len(queue("list")["jobs"]) == 1


def test_list_move_hold_release_cancel_forget(here: Path) -> None:
    for id in ("first-job", "second-job", "third-job"):
        add(here, id, "pass", when="hold")
    assert queue("move", "third", "0")["order"] == ["third-job", "first-job", "second-job"]
    assert queue("hold", "--all") == {"schema": 1, "holding": True}
    assert queue("slots", "3")["slots"] == 3
    listed = queue("list")
    assert [job["id"] for job in listed["jobs"]] == ["third-job", "first-job", "second-job"]
    assert (listed["slots"], listed["holding"]) == (3, True)
    assert queue("release", "first")["job"]["state"] == "queued"
    assert queue("hold", "first")["job"]["state"] == "held"
    assert queue("cancel", "third-job")["job"]["state"] == "cancelled"
    queue("forget", "third-job")
    shown = CliRunner().invoke(queue_app, ["list"]).stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:3]] == [["0", "first-job"], ["1", "second-job"]]
    assert "the queue is held" in shown[-1]
    add(here, "first-other", "pass", when="hold")
    with pytest.raises(RunError, match="'first' begins 2 ids: first-job, first-other"):
        queue("show", "first")


def test_run_until_empty_and_failures_are_told(here: Path) -> None:
    add(here, "good-job1", "print('{}')")
    add(here, "bad-job01", "import sys; print('what went wrong', file=sys.stderr); sys.exit(3)")
    add(here, "held-job1", "pass", when="hold")
    done = CliRunner().invoke(queue_app, ["run", "--json"])
    found = {job["id"]: job["state"] for job in json.loads(done.stdout)["jobs"]}
    assert (done.exit_code, found) == (1, {"good-job1": "done", "bad-job01": "failed", "held-job1": "held"})
    shown = queue("show", "bad")["job"]
    assert (shown["log_tail"], shown["exit_code"], shown["reason"]) == (["what went wrong"], 3, "what went wrong")
    assert "what went wrong" in CliRunner().invoke(queue_app, ["show", "bad"]).stdout
    assert queue("retry", "bad")["job"]["id"] == "bad-job01-r2"
    queue("cancel", "bad-job01-r2")
    queue("hold", "--all")
    add(here, "late-job1", "pass")
    assert CliRunner().invoke(queue_app, ["run"]).exit_code == 0
    assert Jobs(here / "runs").get("late-job1").state == "queued"


def test_ctrl_c_leaves_running_jobs_alone(here: Path) -> None:
    add(here, "long-job1", "import time; time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-m", "luthier", "queue", "run"], stderr=subprocess.PIPE, text=True)
    jobs = Jobs(here / "runs")
    wait_for(lambda: jobs.get("long-job1").state == "running")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "jobs that run go on" in said) == (130, True), said
    identity = jobs.files()[0].process()
    assert identity is not None
    assert identity.is_alive()
    assert queue("stop", "long", "--kill")["job"]["state"] == "stopping"
    wait_for(lambda: queue("show", "long")["job"]["state"] == "stopped")


@pytest.mark.slow
def test_a_real_training_from_the_queue(tiny: Path, rows: Path, tmp_path: Path, jobs: Commands) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {tiny}\ndataset: {rows}\nlora_rank: 4\nmax_steps: 2\ndtype: float32\nthreads: 1\n"
    )
    options = ("--name", "aus der Schlange", "--request-id", "my-request", "--json")
    added = jobs.run("queue", "add", "run.yaml", "--logging_steps", "1", *options, cwd=tmp_path)
    assert added.code == 0, added.err
    assert added.last_json["job"]["id"] == "my-request"
    done = jobs.run("queue", "run", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    job = done.last_json["jobs"][0]
    assert (job["state"], job["result"]["status"]) == ("done", "done")
    found = jobs.run("runs", "search", "schlange", "rank:4", "--json", cwd=tmp_path).last_json
    assert [(run["id"], run["name"], run["state"], run["step"]) for run in found["runs"]] == [
        ("aus-der-Schlange", "aus der Schlange", "done", 2)
    ]


# ---- runs


@pytest.fixture
def two(here: Path) -> Path:
    for name, rank in (("a", 8), ("b", 16)):
        run = here / "runs" / name
        run.mkdir(parents=True)
        (run / "status.json").write_text(json.dumps({"state": "done", "step": 2, "total": 2}))
        (run / "config.yaml").write_text(
            f"model: {{model_name_or_path: m{rank}}}\ntuning: {{name: lora, rank: {rank}}}\nobjective: {{name: sft}}\n"
        )
    return here


def ids(*argv: str) -> list[str]:
    return sorted(run["id"] for run in runs("search", *argv)["runs"])


def test_search_and_notes(two: Path) -> None:
    assert ids("rank:16") == ["b"]
    assert runs("tag", "runs/a", "gut", "neu")["tags"] == ["gut", "neu"]
    assert runs("tag", "runs/a", "--remove", "neu")["tags"] == ["gut"]
    assert runs("rename", "runs/a", "Der beste")["name"] == "Der beste"
    assert runs("note", "runs/a", "viel besser")["notes"] == "viel besser"
    assert runs("note", "runs/a") == {"schema": 1, "run": "runs/a", "name": "Der beste", "notes": "viel besser",
                                      "tags": ["gut"], "pinned": False, "archived": False}  # fmt: skip
    assert ids("--tag", "gut") == ids("besser") == ids("der", "beste") == ["a"]
    assert runs("archive", "runs/a")["archived"] is True
    assert (ids(), ids("--archived")) == (["b"], ["a", "b"])
    assert runs("archive", "runs/a", "--back")["archived"] is False
    (two / "runs/.luthier/index.sqlite").write_bytes(b"garbage")
    assert runs("reindex")["runs"] == 2
    assert "Der beste" in CliRunner().invoke(runs_app, ["search"]).stdout
    assert (ids("--until", "2020-01-01"), ids("--since", "2020-01-01")) == ([], ["a", "b"])
    assert (ids("--model", "elsewhere"), ids("--model", "m16"), ids("--model", "m8,m16")) == ([], ["b"], ["a", "b"])
    with pytest.raises(RunError, match="since: 'heute' is no date"):
        runs("search", "--since", "heute")
    with pytest.raises(RunError, match="no column 'los'; did you mean 'loss'"):
        runs("search", "--sort", "los")
    with pytest.raises(RunError, match="no run directory"):
        runs("rename", "runs/missing", "x")
    with pytest.raises(RunError, match="is no folder"):
        runs("search", "--runs", "nowhere")


def test_deleted_brought_back_and_removed(two: Path) -> None:
    told = runs("delete", "runs/a", "--dry-run")
    assert (told["done"], told["files"], (two / "runs/a").is_dir()) == (False, 2, True)
    assert runs("delete", "runs/a")["done"] is True
    assert (ids(), [each["run"] for each in runs("trash")["runs"]]) == (["b"], ["a"])
    assert runs("undelete", "runs/a")["run"] == str(two / "runs/a")
    assert ids() == ["a", "b"]
    runs("delete", "runs/a")
    assert runs("trash", "--empty") == {"schema": 1, "removed": 1, "runs": []}
    with pytest.raises(RunError, match="not in the trash"):
        runs("undelete", "runs/a")
    with pytest.raises(RunError, match="no run directory"):
        runs("delete", "runs/a")


def test_a_run_that_a_job_writes_is_not_deleted(two: Path) -> None:
    add(two, "train-it1", "pass", run="a", when="hold")
    with pytest.raises(RunError, match=r"job train-it1 \(held\) trains runs/a; stop or cancel it first"):
        runs("delete", "runs/a")


def test_a_run_goes_by_the_name_that_a_search_shows(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs("tag", "a", "good")["tags"] == ["good"]
    assert runs("delete", "a")["done"] is True
    assert runs("undelete", "a")["run"] == str(two / "runs/a")
    with pytest.raises(RunError, match="runs/missing is no run directory"):
        runs("rename", "missing", "x")
    monkeypatch.chdir(two / "runs")
    assert runs("tag", "a", "better")["tags"] == ["good", "better"]
