"""Runs side by side, and their evaluations."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import Page, asking
from run_folders import SETTINGS, append, line, make_run

from luthier.runs.manifest import seal


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        yield found


def settings(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(SETTINGS)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        found[section][name] = value
    return found


def make(page: Page, name: str, data: str = "rows-1", **changes: Any) -> Path:
    run = make_run(page.state.roots.runs, name, settings=settings(train__output_dir=f"runs/{name}", **changes))
    folder = run / "checkpoint-10"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"identity": {"data": data}}))
    seal(folder, 10)
    return run


def test_two_runs_that_differ_in_one_key_have_one_row(page: Page) -> None:
    make(page, "a")
    make(page, "b", tuning__rank=16)
    found = page.get("/compare", runs="a,b")
    assert found["settings"] == [{"key": "tuning.rank", "values": [8, 16]}]
    assert (found["data_equal"], found["versions"], found["missing"]) == (True, [], [])
    assert found["versions_equal"] is True
    assert [row["id"] for row in found["runs"]] == ["a", "b"]


def test_what_differs_is_nested_masked_and_in_order(page: Page) -> None:
    make(page, "a", model__hub_token="abc-secret", data__columns={"prompt": "q"})
    run = make(page, "b", data="rows-2", data__columns={"prompt": "p"}, train__fp16=1)
    append(run, line(11, 11, loss=None, nonfinite=True))
    manifest = json.loads((run / "checkpoint-10/manifest.json").read_text())
    (run / "checkpoint-10/manifest.json").write_text(json.dumps({**manifest, "torch": "0.1"}))
    found = page.get("/compare", runs="b,gone,a,../a,b")
    assert found["missing"] == ["gone", "../a"]
    assert {each["key"]: each["values"] for each in found["settings"]} == {
        "model.hub_token": [None, "***"],
        "data.columns.prompt": ["p", "q"],
        "train.fp16": [1, None],
    }
    assert found["data_equal"] is False
    assert [each["key"] for each in found["versions"]] == ["torch"]
    assert found["versions_equal"] is False
    results = {each["key"]: each["values"] for each in found["results"]}
    assert results["loss (last)"] == [None, 0.1], "the last loss of a run that ended in NaN is none"
    assert results["loss (least)"] == [0.1, 0.1]
    assert results["loss (greatest)"] == [1.0, 1.0]


def test_what_is_not_known_is_not_said(page: Page) -> None:
    make(page, "a")
    (make(page, "b") / "checkpoint-10/state.json").unlink()
    assert page.get("/compare", runs="a,b")["data_equal"] is None
    assert page.get("/compare", runs="a")["data_equal"] is None
    assert page.get("/compare", runs="a,b")["versions_equal"] is True
    (page.state.roots.runs / "b/checkpoint-10/manifest.json").unlink()
    found = page.get("/compare", runs="a,b")
    assert found["versions_equal"] is None
    assert [each["values"][1] for each in found["versions"]] == [None, None]
    assert page.get("/compare", runs=",".join(f"r{i}" for i in range(21)), status=422)["field"] == "runs"


def test_answers_side_by_side(page: Page) -> None:
    for name in ("a", "b"):
        group = {"step": 1, "prompt": "p", "completions": [{"text": name}]}
        (make(page, name) / "samples.jsonl").write_text(json.dumps(group) + "\n")
    found = page.get("/compare/samples", runs="a,b,gone", step=1)
    assert {name: each["groups"][0]["completions"][0]["text"] for name, each in found.items()} == {"a": "a", "b": "b"}
    assert page.get("/compare/samples", runs="a", step=2)["a"] == {"groups": [], "steps": [1], "total": 0}


def evaluation(run: Path, name: str, when: str, before: list[float], after: list[float]) -> None:
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    measures = {"exact_match": {"value": 0.5, "better": "higher"}, "cut_off": {"value": 0.0, "better": "lower"}}
    models = [{"model": each, "measures": measures} for each in ("base", "run")]
    (folder / "results.json").write_text(json.dumps({"schema": 1, "time": when, "settings": {}, "models": models}))
    for file, scores in (("predictions-generate-base.jsonl", before), ("predictions-generate.jsonl", after)):
        lines = [
            {
                "question": f"q{i}",
                "expected": "e",
                "answer": f"{file[-6]}",
                "origin": f"x:{i}",
                "grades": {"exact_match": s, "cut_off": 1.0},
            }
            for i, s in enumerate(scores)
        ]
        (folder / file).write_text("".join(json.dumps(each) + "\n" for each in lines) + "half")


def test_evaluations_and_the_items_that_changed_most(page: Page) -> None:
    run = make(page, "a")
    evaluation(run, "first", "2026-01-01T00:00:00+00:00", [0, 1, 0.5, 0.5], [1, 0, 0.5, 0.75])
    (run / "evaluation/broken").mkdir()
    (run / "evaluation/broken/results.json").write_text("{")
    found = page.get("/runs/a/evaluations")["evaluations"]
    assert {each["name"] for each in found} == {"first", "broken"}
    first = next(each for each in found if each["name"] == "first")
    assert (first["models"], first["kinds"], first["created"]) == (["base", "run"], ["generate"], 1767225600.0)
    assert first["results"]["models"][-1]["measures"]["exact_match"]["value"] == 0.5
    assert "cannot be read" in next(each for each in found if each["name"] == "broken")["error"]
    items = page.get("/runs/a/evaluations/first/items")
    assert [(each["prompt"], each["before_score"], each["after_score"]) for each in items] == [
        ("q0", 0, 1), ("q3", 0.5, 0.75), ("q1", 1, 0),
    ]  # fmt: skip
    assert len(page.get("/runs/a/evaluations/first/items", limit=1)) == 2
    page.get("/runs/a/evaluations/none/items", 404)
    page.get("/runs/a/evaluations/%2e%2e/items", 404)
    assert page.get("/runs/a")["evaluations"] == 2
    compared = page.get("/compare", runs="a")["evaluations"]
    assert [each["run"] for each in compared] == ["a"]


def test_notes_of_evaluations_are_said_in_the_language_of_the_page(page: Page) -> None:
    run = make(page, "a")
    evaluation(run, "first", "2026-01-01T00:00:00+00:00", [0], [1])
    path = run / "evaluation/first/results.json"
    found = json.loads(path.read_text())
    note = "the queue is held"
    found["models"][0] |= {"notes": [note], "model": note}
    path.write_text(json.dumps(found))
    for question in ("/api/runs/a/evaluations", "/api/compare?runs=a"):
        for language, said in (("zh-CN", "队列已暂停"), ("en", note)):
            reply = page.http.get(question, headers={"Accept-Language": language})
            (model, _) = reply.json()["evaluations"][0]["results"]["models"]
            assert (model["notes"], model["model"]) == ([said], note)
