"""Audits run as jobs, are known to the page and the command line alike, and lead to a file without what they found."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import Page, asking

from luthier.config.load import load_config
from luthier.data.audit_files import keep_audit, kept_audit
from luthier.data.prepare import prepare
from luthier.workflows.build import read_preparer

ROWS = [
    {"instruction": "你好", "output": "🙂"},
    {"instruction": "tea?", "output": "yes"},
    {"instruction": "tea?", "output": "yes"},
    {"instruction": "long", "output": "word " * 40},
    {"instruction": "no answer", "output": ""},
]


@pytest.fixture
def page(tmp_path: Path, tiny: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        shutil.copytree(tiny, tmp_path / "models/tiny")
        lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
        lines[3:3] = ["", '{"cut": ']
        (found.data / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield found


def audit_here(page: Page) -> None:
    """What the job does, without its process."""
    path = page.data / "rows.jsonl"
    model = str(page.state.roots.models[0] / "tiny")
    config = load_config({"model_name_or_path": model, "dataset": [str(path)], "cutoff_len": 100}).config
    _, report = prepare(config.data.dataset, read_preparer(config))
    keep_audit(path, report, 100)


def named(page: Page) -> dict[str, Any]:
    return {"dataset": "rows.jsonl", "folder": str(page.data)}


def test_findings_lead_to_rows(page: Page) -> None:
    assert page.get("/data/audit", **named(page))["state"] == "none"
    audit_here(page)
    found = page.get("/data/audit", **named(page))
    assert (found["state"], found["rows"], found["stale"], found["cutoff_len"]) == ("done", 6, False, 100)
    assert (found["counts"]["broken_json"], found["counts"]["duplicate"]) == (1, 1)
    assert found["levels"]["broken_json"] == "error"
    assert sum(rows for _, rows in found["lengths"]) == found["trained_rows"] == 4
    assert any(edge > 100 for edge, _ in found["lengths"]), "lengths are those before rows are cut"
    by_kind = {each["kind"]: each for each in found["findings"]}
    assert (by_kind["broken_json"]["row"], by_kind["broken_json"]["where"]) == (3, f"{page.data / 'rows.jsonl'}:5")
    assert (by_kind["duplicate"]["row"], by_kind["answer_cut"]["row"]) == (2, 4)
    for each in found["findings"]:
        shown = page.get("/data/rows", **named(page), start=each["row"], count=1)
        assert each["where"].endswith(f":{shown['lines'][0]}")
    assert next(s for s in page.get("/data")["datasets"])["audit"] == "errors"


def test_a_file_that_changed_is_said(page: Page) -> None:
    audit_here(page)
    with (page.data / "rows.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert page.get("/data/audit", **named(page))["stale"]
    assert next(s for s in page.get("/data")["datasets"])["audit"] == "unknown"
    assert page.get("/data/bad-rows", 409, **named(page))["code"] == "data_no_audit"
    asked = {**named(page), "drop": ["duplicate"], "name": "x"}
    assert page.post("/data/clean", asked, 409)["code"] == "data_no_audit"


def test_bad_rows_are_handed_out(page: Page) -> None:
    audit_here(page)
    reply = page.http.get("/api/data/bad-rows", params=named(page))
    assert reply.headers["content-disposition"] == 'attachment; filename="rows.bad.jsonl"'
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert [(line["line"], line["row"]) for line in lines] == [(5, '{"cut": '), (7, ROWS[4])]
    assert lines[0]["broken"]
    reply = page.http.get("/api/data/bad-rows", params={**named(page), "kinds": "duplicate,answer_cut"})
    assert [json.loads(line)["kinds"] for line in reply.text.splitlines()] == [["duplicate"], ["answer_cut"]]


def test_cleaning(page: Page) -> None:
    audit_here(page)
    before = (page.data / "rows.jsonl").read_bytes()
    asked = {**named(page), "drop": ["broken_json", "duplicate"], "name": "my clean rows"}
    shown = page.post("/data/clean", asked)
    assert (shown["before"], shown["after"], shown["written"]) == (6, 4, None)
    assert shown["dropped"] == {"broken_json": 1, "duplicate": 1}
    assert [each["kind"] for each in shown["examples"]] == ["duplicate", "broken_json"]
    assert sorted(path.name for path in page.data.iterdir()) == ["rows.jsonl"]
    written = page.post("/data/clean", asked, dry_run=False)
    assert written["written"] == "my-clean-rows.jsonl"
    kept = [json.loads(line) for line in (page.data / "my-clean-rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == [ROWS[0], ROWS[1], ROWS[3], ROWS[4]]
    assert page.post("/data/clean", asked, 409, dry_run=False)["code"] == "data_exists"
    assert (page.data / "rows.jsonl").read_bytes() == before
    assert "no row has 'nothing'" in page.post("/data/clean", {**asked, "drop": ["nothing"]}, 422)["message"]
    for name in ("../x.jsonl", "/tmp/x.jsonl", "a\\b"):
        page.post("/data/clean", {**asked, "name": name}, 400, dry_run=False)
    assert len(list(page.data.iterdir())) == 2


@pytest.mark.slow
def test_an_audit_as_a_job(page: Page) -> None:
    values: dict[str, Any] = {"model": {"model_name_or_path": str(page.state.roots.models[0] / "tiny")}}
    asked = {"request_id": "audit-0001", "kind": "audit", "options": named(page), "values": values, "when": "now"}
    job = page.post("/jobs", asked)
    assert page.get("/data/audit", **named(page))["job"] == job["id"] == "audit-0001"
    assert page.get("/data/audit", **named(page))["state"] == "running"
    until = time.monotonic() + 120
    while (found := page.get("/data/audit", **named(page)))["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.2)
    assert found["state"] == "done", page.get("/jobs/audit-0001")
    assert (found["rows"], found["counts"]["broken_json"]) == (6, 1)
    assert kept_audit(page.data / "rows.jsonl") is not None
    values["model"]["model_name_or_path"] = str(page.state.roots.models[0] / "gone")
    page.post("/jobs", {**asked, "request_id": "audit-0002"})
    while (found := page.get("/data/audit", **named(page)))["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.2)
    assert (found["state"], found["rows"], found["job"]) == ("failed", 6, "audit-0002"), "the last good one stays"
