"""Jobs over HTTP: what the page asks for becomes the command that a person would type, once."""

import json
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import Page, asking
from helpers import wait_for

from luthier.config.load import dump, load_config
from luthier.runs import launch
from luthier.server.ui.jobs import job_of
from luthier.server.ui.said import speaking


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        found.patch = lambda path, body, status=200: found._read(found.http.patch(f"/api{path}", json=body), status)
        yield found
        for job in found.state.jobs.files():
            process = job.process()
            if process is not None:
                launch.send(process, signal.SIGKILL, group=True)


@pytest.fixture
def settings(page: Page, tiny: Path, rows: Path) -> dict[str, Any]:
    """A tiny training, in the folders that the page may use."""
    (page.data / "rows.jsonl").write_bytes(rows.read_bytes())
    model = page.data.parent / "models/tiny"
    model.mkdir()
    for file in tiny.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    return {
        "model": {"model_name_or_path": str(model), "dtype": "float32", "threads": 1},
        "data": {"dataset": [str(page.data / "rows.jsonl")], "val_size": 4},
        "tuning": {"name": "lora", "rank": 4},
        "objective": {"name": "sft"},
        "train": {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1},
    }


def train(settings: dict[str, Any], id: str = "request-1", **more: Any) -> dict[str, Any]:
    return {"request_id": id, "kind": "train", "values": settings, "when": "hold", **more}


def argv(job: dict[str, Any]) -> list[str]:
    return shlex.split(job["command"])


def test_what_a_command_found_is_said_in_the_language_of_the_page(page: Page, settings: dict[str, Any]) -> None:
    id = page.post("/jobs", train(settings))["id"]
    held = "the queue is held"
    found = {"reports": [{"checks": [{"name": held, "found": held}]}], "folder": held}
    view = replace(page.state.jobs.get(id), result=found)
    with speaking("zh"):
        result = job_of(view).result
    assert result == {"reports": [{"checks": [{"name": held, "found": "队列已暂停"}]}], "folder": held}
    assert job_of(view).result == found


def test_a_training_is_the_file_and_the_line_that_a_person_would_write(page: Page, settings: dict[str, Any]) -> None:
    job = page.post("/jobs", train(settings, name="Mein Lauf: 1", notes="n", tags=["t"]))
    assert (job["state"], job["kind"], job["run"], job["position"]) == ("held", "train", "Mein-Lauf-1", 0)
    file = page.state.jobs.path(job["id"]) / "config.yaml"
    root = page.state.roots.runs
    assert argv(job) == ["luthier", "train", str(file), f"train.output_dir={root / 'Mein-Lauf-1'}", "--json"]
    written = yaml.safe_load(file.read_text())
    assert written["train"] == {**settings["train"], "run_name": "Mein Lauf: 1"}
    assert written["tuning"] == settings["tuning"]
    asked = load_config(settings, ["train.run_name=Mein Lauf: 1"])
    assert dump(load_config(file).config) == dump(asked.config)
    assert page.get("/jobs")["jobs"] == [job]
    assert page.get(f"/jobs/{job['id']}") == job


@pytest.mark.parametrize(
    "yaml_text",
    [
        "stage: dpo\npref_beta: 0.3\nfinetuning_type: lora\nlora_rank: 16\nlora_target: all\n",
        "stage: sft\nfinetuning_type: full\nlearning_rate: 1e-5\nbf16: true\nneftune_noise_alpha: 5\n",
        "objective: sft\ntuning: qlora\nrope_scaling: yarn\ncutoff_len: 4096\n",
        "stage: grpo\nrewards: [{name: length, target: 5}]\nnum_generations: 4\n",
        "quantization_bit: 4\nstage: kto\ncolumns: {prompt: a}\nlr_scheduler_type: cosine\nwarmup_ratio: 0.1\n",
    ],
)
def test_pasted_settings_mean_the_same_in_the_job(page: Page, settings: dict[str, Any], yaml_text: str) -> None:
    model, data = settings["model"]["model_name_or_path"], settings["data"]["dataset"][0]
    text = f"model_name_or_path: {model}\ndataset: {data}\n{yaml_text}"
    looked = page.post("/config/look", {"yaml": text})
    assert looked["ok"], looked["problems"]
    job = page.post("/jobs", {"request_id": "request-1", "kind": "train", "yaml": text, "when": "hold"})
    file = page.state.jobs.path(job["id"]) / "config.yaml"
    assert dump(load_config(file).config) == looked["resolved"]


def test_two_tabs_that_press_start_at_once_start_one_run(page: Page, settings: dict[str, Any]) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(page.post("/jobs", train(settings)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(job["id"], job["run"], job["created"]) for job in found}) == 1
    assert len(page.get("/jobs")["jobs"]) == 1


def test_the_same_again_is_another_run(page: Page, settings: dict[str, Any]) -> None:
    again = {**settings, "train": {**settings["train"], "output_dir": str(page.state.roots.runs / "first")}}
    names = [page.post("/jobs", train(again, f"request-{i}"))["run"] for i in range(3)]
    assert names == ["first", "first-2", "first-3"]


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"request_id": "../../x"}, 422, "request_field", "request_id"),
        ({"kind": "shell"}, 422, "request_field", "kind"),
        ({"surprise": 1}, 422, "request_field", "surprise"),
        ({"values": None, "yaml": "a: [1"}, 422, "config", "not YAML"),
        ({"values": None, "yaml": ""}, 422, "config", "empty"),
        ({"values": None}, 422, "config", "either as yaml or as values"),
        (
            {"values": {"model": {"model_name_or_path": "a/b"}, "train": {"learnig_rate": 1}}},
            422,
            "config_unknown_key",
            "learnig_rate",
        ),
        ({"name": "a\u202eb"}, 422, "notes", "bidirectional"),
        ({"tags": ["x" * 65]}, 422, "notes", "at most 64"),
        ({"options": {"memory_byte": 1}}, 422, "job_option", "did you mean 'memory_bytes'"),
        ({"options": {"memory_bytes": "1"}}, 422, "job_option", "expected int, found '1'"),
        ({"resume": "missing", "values": None}, 404, "run_missing", "missing"),
        ({"resume": "../etc", "values": None}, 404, "run_missing", "etc"),
    ],
)
def test_bad_requests(
    page: Page, settings: dict[str, Any], change: dict[str, Any], status: int, code: str, said: str
) -> None:
    error = page.post("/jobs", {**train(settings), **change}, status)
    assert (error["code"], said in error["message"]) == (code, True), error
    assert page.get("/jobs")["jobs"] == []
    assert not page.state.jobs.folder.exists() or os.listdir(page.state.jobs.folder) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "dataset", ["/etc/passwd"]),
        ("model", "model_name_or_path", "/usr"),
        ("model", "allow_remote_code", True),
        ("objective", "name", "/tmp/x.py:Evil"),
        ("rollout", "rewards", ["/tmp/evil.py:reward"]),
        ("train", "output_dir", "/tmp/elsewhere"),
    ],
)
def test_nothing_outside_and_no_code(page: Page, settings: dict[str, Any], section: str, key: str, value: Any) -> None:
    values = {**settings, section: {**settings.get(section, {}), key: value}}
    error = page.post("/jobs", train(values), 422)
    assert error["code"] in ("path_outside", "remote_code", "config"), error
    assert page.get("/jobs")["jobs"] == []


def test_actions_over_http(page: Page, settings: dict[str, Any]) -> None:
    page.post("/jobs", train(settings))
    assert page.post("/jobs/request-1/action", {"action": "explode"}, 422)["code"] == "request_field"
    assert page.post("/jobs/request-1/action", {"action": "stop"}, 409)["code"] == "job_state"
    assert page.post("/jobs/nothing-1/action", {"action": "stop"}, 404)["code"] == "job_missing"
    assert page.get("/jobs/nothing-1", 404)["code"] == page.get("/jobs/nothing-1/log", 404)["code"] == "job_missing"
    assert page.post("/jobs/request-1/action", {"action": "cancel"})["state"] == "cancelled"
    assert page.post("/jobs/request-1/action", {"action": "forget"})["id"] == "request-1"
    assert page.get("/jobs")["jobs"] == []


def test_the_queue_over_http(page: Page, settings: dict[str, Any]) -> None:
    for i in range(3):
        page.post("/jobs", train(settings, f"request-{i}"))
    changed = page.patch("/queue", {"order": ["request-2"], "slots": 3, "holding": True})
    assert [job["id"] for job in changed["jobs"]] == ["request-2", "request-0", "request-1"]
    assert (changed["slots"], changed["holding"]) == (3, True)
    assert page.patch("/queue", {"order": ["request-9"]}, 422)["code"] == "queue_order"
    assert page.patch("/queue", {"slots": 0}, 422)["code"] == "request_field"


def run_of(page: Page, settings: dict[str, Any], name: str = "a-run") -> Path:
    run = page.state.roots.runs / name
    (run / "checkpoint-3").mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "stopped"}))
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def test_a_run_goes_on_where_it_stopped(page: Page, settings: dict[str, Any]) -> None:
    run = run_of(page, settings)
    body = {"request_id": "resume-1", "kind": "train", "resume": "a-run", "when": "hold"}
    assert page.post("/jobs", {**body, "values": settings}, 422)["code"] == "job_resume"
    job = page.post("/jobs", body)
    assert job["run"] == "a-run"
    file = page.state.jobs.path("resume-1") / "config.yaml"
    assert load_config(file).config.train.resume == "must"
    assert argv(job)[3] == f"train.output_dir={run}"
    assert page.post("/jobs", {**body, "request_id": "resume-2"}, 409)["code"] == "job_conflict"
    (run / "checkpoint-3").rmdir()
    page.post("/jobs/resume-1/action", {"action": "cancel"})
    assert page.post("/jobs", {**body, "request_id": "resume-2"}, 422)["code"] == "run_no_checkpoint"


def test_evaluate_export_and_serve_are_the_lines_that_a_person_would_write(
    page: Page, settings: dict[str, Any]
) -> None:
    run = run_of(page, settings)
    model = settings["model"]["model_name_or_path"]
    body = {"request_id": "evaluate", "kind": "evaluate", "sources": ["a-run", "a-run/checkpoint-3"], "when": "hold",
            "options": {"compare": True}, "values": {"evaluate": {"predict_samples": 5}}}  # fmt: skip
    job = page.post("/jobs", body)
    assert argv(job) == ["luthier", "evaluate", str(run), str(run / "checkpoint-3"), "evaluate.predict_samples=5",
                         "--compare", "--json"]  # fmt: skip
    assert (job["run"], job["name"]) == ("a-run", "a-run, a-run")
    body = {"request_id": "export-1", "kind": "export", "sources": ["a-run"], "when": "hold",
            "options": {"format": "gguf", "quantize": ["q8_0", "f16"], "verify": False}}  # fmt: skip
    assert argv(page.post("/jobs", body)) == [
        "luthier", "export", str(run), "export.export_format=gguf", 'export.export_quantize=["q8_0", "f16"]',
        "export.export_verify=false", "--json"]  # fmt: skip
    body = {"request_id": "export-2", "kind": "export", "sources": ["a-run/checkpoint-3"], "when": "hold"}
    assert f"export.export_dir={run / 'export/checkpoint-3-merged'}" in argv(page.post("/jobs", body))
    elsewhere = str(run / "export/checkpoint-3-merged-2")
    body = {**body, "request_id": "export-3", "values": {"export": {"export_dir": elsewhere}}}
    assert [each for each in argv(page.post("/jobs", body)) if "export_dir" in each] == [
        f"export.export_dir={elsewhere}"
    ]
    body = {"request_id": "serve-01", "kind": "serve", "sources": [model], "when": "hold",
            "options": {"adapters": {"mine": "a-run"}}}  # fmt: skip
    page.post("/jobs", body)
    folder = page.state.jobs.path("serve-01")
    line = shlex.split(page.state.jobs.get("serve-01").command)
    assert line == ["luthier", "serve", model, "--adapter", f"mine={run}", "serve.host=127.0.0.1",
                         f"serve.api_keys={folder / 'keys.json'}", "serve.port=0"]  # fmt: skip
    from luthier.server.keys import Keys

    secret = (folder / "key").read_text()
    assert Keys(path=folder / "keys.json").owner(secret) == "page"
    assert secret not in json.dumps(page.get("/jobs"))
    assert (folder / "key").stat().st_mode & 0o077 == 0


def test_an_audit_names_its_rows(page: Page, settings: dict[str, Any]) -> None:
    values = {"model": settings["model"], "data": {"cutoff_len": 64}}
    body = {"request_id": "audit-01", "kind": "audit", "values": values, "when": "hold",
            "options": {"dataset": "rows.jsonl", "folder": str(page.data)}}  # fmt: skip
    job = page.post("/jobs", body)
    file = page.state.jobs.path("audit-01") / "config.yaml"
    assert argv(job) == ["luthier", "data", "audit", str(file), "--json"]
    assert page.get("/data/audit", dataset="rows.jsonl", folder=str(page.data))["state"] == "running"
    body = {**body, "request_id": "audit-02", "options": {"dataset": "../runs", "folder": str(page.data)}}
    assert page.post("/jobs", body, 404)["code"].endswith("missing")


@pytest.mark.parametrize(
    ("kind", "sources", "code"),
    [
        ("evaluate", [], "job_sources"),
        ("export", ["a-run", "a-run"], "job_sources"),
        ("export", ["/etc"], "path_outside"),
        ("evaluate", ["../../etc"], "path_outside"),
        ("serve", ["missing-run"], "model_missing"),
        ("evaluate", ["--help"], "model_missing"),
        ("evaluate", ["$(touch x)"], "model_missing"),
    ],
)
def test_sources_that_are_none(page: Page, settings: dict[str, Any], kind: str, sources: list[str], code: str) -> None:
    run_of(page, settings)
    body = {"request_id": "source-1", "kind": kind, "sources": sources, "when": "hold"}
    status = {"job_sources": 422, "path_outside": 403, "model_missing": 404}[code]
    assert page.post("/jobs", body, status)["code"] == code


def test_a_run_whose_settings_bring_code_is_not_used(page: Page, settings: dict[str, Any]) -> None:
    run_of(page, {**settings, "model": {**settings["model"], "allow_remote_code": True}})
    for body in ({"kind": "evaluate", "sources": ["a-run"]}, {"kind": "train", "resume": "a-run"}):
        assert page.post("/jobs", {"request_id": "remote-1", "when": "hold", **body}, 422)["code"] == "remote_code"


def until(page: Page, id: str, *states: str) -> dict[str, Any]:
    return wait_for(lambda: found if (found := page.get(f"/jobs/{id}"))["state"] in states else None, 120)


@pytest.mark.slow
def test_a_real_training_from_the_page(page: Page, settings: dict[str, Any]) -> None:
    job = page.post("/jobs", train(settings, when="now", name="Echt", notes="eine Notiz", tags=["klein"]))
    assert job["state"] in ("queued", "starting", "running")
    done = until(page, job["id"], "done", "failed", "crashed")
    log = page.get(f"/jobs/{job['id']}/log", after=0)
    assert done["state"] == "done", log["lines"]
    assert (done["exit_code"], done["result"]["status"], done["result"]["steps"]) == (0, "done", 3)
    row = page.state.index.row("Echt")
    assert (row.state, row.step, row.name, row.notes, row.tags) == ("done", 3, "Echt", "eine Notiz", ["klein"])
    assert row.best_metric == "eval_loss"
    assert log["offset"] > 0
    assert log["lines"]
    more = page.get(f"/jobs/{job['id']}/log", after=log["offset"])
    assert more["lines"] == []
    assert page.state.jobs.for_run("Echt").id == job["id"]
    audited = page.post("/jobs", {"request_id": "audit-01", "kind": "audit", "values": {"model": settings["model"]},
                                  "options": {"dataset": "rows.jsonl", "folder": str(page.data)}})  # fmt: skip
    found = until(page, audited["id"], "done", "failed", "crashed")
    assert (found["state"], found["result"]["rows"]) == ("done", 24), found["log_tail"]
    assert page.get("/data/audit", dataset="rows.jsonl", folder=str(page.data))["state"] == "done"
    page.patch("/queue", {"slots": 2})
    measured = {"evaluate": {"predict_samples": 2}, "generate": {"max_new_tokens": 4}}
    page.post("/jobs", {"request_id": "evaluate", "kind": "evaluate", "sources": ["Echt"], "values": measured})
    page.post("/jobs", {"request_id": "export-1", "kind": "export", "sources": ["Echt"]})
    graded, exported = (until(page, id, "done", "failed", "crashed") for id in ("evaluate", "export-1"))
    assert graded["state"] == "done", graded["log_tail"]
    assert [Path(each).parent.parent.name for each in graded["result"]["folders"]] == ["Echt"]
    assert exported["state"] == "done", exported["log_tail"]
    assert Path(exported["result"]["folder"]) == page.state.roots.runs / "Echt/export/merged"


@pytest.mark.slow
def test_a_job_that_dies_at_once_says_why(page: Page, settings: dict[str, Any]) -> None:
    (page.data / "rows.jsonl").write_text('{"instruction": "a"}\n')
    page.post("/jobs", train(settings, when="now"))
    job = until(page, "request-1", "failed", "crashed", "done")
    assert (job["state"], job["exit_code"]) == ("failed", 2)
    assert "rows.jsonl" in job["error"]["message"]
    assert any("rows.jsonl" in line for line in job["log_tail"])
    assert page.state.index.row(job["run"]).state in ("never started", "failed")


@pytest.mark.slow
def test_saved_stopped_and_gone_on_from_the_page(page: Page, settings: dict[str, Any]) -> None:
    longer = {**settings, "train": {**settings["train"], "max_steps": 100_000, "save_steps": 100_000}}
    page.post("/jobs", train(longer, when="now", name="long"))
    run = page.state.roots.runs / "long"
    early = page.http.post("/api/jobs/request-1/action", json={"action": "save"})
    assert early.status_code == 409, "before it trains the signal would end it"
    wait_for(lambda: page.get("/jobs/request-1")["doing"] == "running", 120)
    job = page.post("/jobs/request-1/action", {"action": "save"})
    assert (job["state"], job["run"], 0 <= job["progress"] < 1) == ("running", "long", True)
    wait_for(lambda: list(run.glob("checkpoint-*")))
    assert page.get("/jobs/request-1")["state"] == "running"
    assert page.post("/jobs/request-1/action", {"action": "stop"})["state"] == "stopping"
    assert page.post("/jobs/request-1/action", {"action": "stop"})["state"] in ("stopping", "stopped")
    job = until(page, "request-1", "stopped", "failed", "crashed", "done")
    assert (job["state"], job["exit_code"], job["reason"]) == ("stopped", 143, "stopped as asked")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped"
    assert (run / f"checkpoint-{status['step']}").is_dir()
    page.post("/jobs", {"request_id": "request-2", "kind": "train", "resume": "long", "when": "now"})
    wait_for(lambda: json.loads((run / "status.json").read_text()).get("step", 0) > status["step"], 120)
    os.kill(json.loads((page.state.jobs.path("request-2") / "process.json").read_text())["pid"], signal.SIGKILL)
    job = until(page, "request-2", "crashed", "failed", "done")
    assert job["reason"] == "killed (by the kernel for memory, or by hand)"
    assert page.state.index.row("long").state == "crashed"
    assert job["log_tail"]
