"""Data sets on the page: the list, rows from any place, and how columns are read."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import Page, asking

CHINESE = {"instruction": "你好，世界 🙂", "output": "第一行\n第二行\u2028第三行"}


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        yield found


def write(page: Page, name: str, *rows: object) -> None:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    (page.data / name).write_text(text, encoding="utf-8")


def rows(page: Page, name: str, **asked: Any) -> dict:
    return page.get("/data/rows", dataset=name, folder=str(page.data), **asked)


def test_list(page: Page) -> None:
    write(page, "chats.jsonl", *[CHINESE] * 3)
    write(page, "pairs.jsonl", {"instruction": "a", "chosen": "b", "rejected": "c"})
    write(page, "notes.md", "no rows")
    entries = {
        "named": {"file_name": "chats.jsonl", "formatting": "alpaca"},
        "pairs": {"file_name": "pairs.jsonl", "ranking": True},
        "hub": {"hf_hub_url": "some/where"},
        "gone": {"file_name": "gone.jsonl"},
        "outside": {"file_name": "../runs/x.jsonl"},
    }
    (page.data / "dataset_info.json").write_text(json.dumps(entries))
    write(page, "plain.csv", "instruction,output", "a,b")
    page.get("/data")
    time.sleep(0.3)
    found = {each["name"]: each for each in page.get("/data")["datasets"]}
    assert found.pop("example")["rows"] == 24
    assert not any(each["packaged"] for each in found.values())
    assert list(found) == ["named", "pairs", "hub", "gone", "outside", "plain.csv"]
    assert (found["named"]["rows"], found["named"]["format"], found["named"]["source"]) == (3, "alpaca", "chats.jsonl")
    assert (found["pairs"]["pairs"], found["hub"]["source"], found["hub"]["rows"]) == (True, "some/where", None)
    assert (found["plain.csv"]["rows"], found["plain.csv"]["format"]) == (1, "auto")
    assert found["gone"]["bytes"] is found["outside"]["bytes"] is None
    assert all(each["folder"] == str(page.data) and not each["uploaded"] for each in found.values())


def test_what_comes_with_luthier_is_there_and_not_to_be_changed(page: Page) -> None:
    (found,) = page.get("/data")["datasets"]
    assert (found["name"], found["format"], found["uploaded"]) == ("example", "alpaca", False)
    assert found["packaged"] is True
    asked = {"dataset": "example", "folder": found["folder"]}
    shown = page.get("/data/rows", **asked)
    assert shown["total"] >= 20
    assert not shown["broken"]
    assert all(row["instruction"] and row["output"] for row in shown["rows"])
    mapping = page.get("/data/mapping", **asked)
    page.put("/data/mapping", mapping, 403, **asked)
    page.delete("/data/uploads/example.jsonl", 404)
    values = {"model": {"model_name_or_path": "m"}, "data": {"dataset": ["example"], "dataset_dir": found["folder"]}}
    assert page.post("/config/look", {"values": values})["ok"]


def test_a_broken_list_of_names_does_not_hide_files(page: Page) -> None:
    write(page, "x.jsonl", CHINESE)
    (page.data / "dataset_info.json").write_text("{")
    assert [each["name"] for each in page.get("/data")["datasets"]] == ["x.jsonl", "example"]
    assert "not JSON" in page.get("/data/rows", 422, dataset="x.jsonl", folder=str(page.data))["message"]


def test_a_list_of_names_that_is_too_large_is_not_read(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    write(page, "x.jsonl", CHINESE)
    (page.data / "dataset_info.json").write_text("{}" + 40 * " ")
    monkeypatch.setattr("luthier.server.ui.sets.LARGEST_SHELF_BYTES", 41)
    assert "has more than 41 bytes" in page.get("/data/rows", 422, dataset="x.jsonl", folder=str(page.data))["message"]
    monkeypatch.setattr("luthier.server.ui.sets.LARGEST_SHELF_BYTES", 42)
    assert rows(page, "x.jsonl")["rows"] == [CHINESE]


def test_rows_are_shown_as_they_are(page: Page) -> None:
    odd = '{"a": NaN, "b": 123456789012345678901234567890, "c": "\\ud800", "d": {"e": [null, 1.5]}}'
    write(page, "x.jsonl", "\ufeff" + json.dumps(CHINESE, ensure_ascii=False), "", odd, '{"cut": ', [1])
    found = rows(page, "x.jsonl")
    assert found["rows"][1] == {
        "a": "NaN",
        "b": "123456789012345678901234567890",
        "c": "\\ud800",
        "d": {"e": [None, 1.5]},
    }
    assert found["rows"][0] == CHINESE
    assert (found["lines"], found["total"], found["broken"], found["places"]) == ([1, 3, 4, 5], 4, [2, 3], [0, 1, 2, 3])
    assert found["rows"][2] == '{"cut":'.ljust(8)
    assert "not JSON" in found["problems"][0]
    assert "expected a JSON object" in found["problems"][1]
    columns = {each["name"]: each for each in found["columns"]}
    assert columns["instruction"] == {"name": "instruction", "types": {"text": 1}, "filled": 0.5}
    assert list(columns) == ["instruction", "output", "a", "b", "c", "d"]


def test_a_hundred_thousand_rows(page: Page) -> None:
    write(page, "x.jsonl", *[{"instruction": f"question {i}", "output": "word " * 20} for i in range(100_000)])
    began = time.monotonic()
    first = rows(page, "x.jsonl", count=100)
    opened = time.monotonic() - began
    assert len(first["rows"]) == 100
    while rows(page, "x.jsonl", count=1)["total"] is None:
        time.sleep(0.05)
    began = time.monotonic()
    assert rows(page, "x.jsonl", start=99_990, count=100)["rows"][9]["instruction"] == "question 99999"
    assert rows(page, "x.jsonl", start=50_000, count=1)["lines"] == [50_001]
    assert opened < 5
    assert time.monotonic() - began < 5


def test_search(page: Page) -> None:
    write(page, "x.jsonl", *[{"a": f"row {i}"} for i in range(300)], CHINESE)
    found = rows(page, "x.jsonl", search="世界")
    assert (found["places"], found["rows"], found["stopped"]) == ([300], [CHINESE], None)
    some = rows(page, "x.jsonl", search="ROW 2", count=2)
    assert (some["places"], some["stopped"]) == ([2, 20], 21)
    assert rows(page, "x.jsonl", search="ROW 2", count=2, start=21)["places"] == [21, 22]


def test_a_row_of_five_megabytes_is_cut(page: Page) -> None:
    write(page, "x.jsonl", {"text": "你" * 5_000_000}, CHINESE, {"list": list(range(5000))})
    response = page.http.get("/api/data/rows", params={"dataset": "x.jsonl", "folder": str(page.data)})
    assert len(response.content) < 200_000
    shown = response.json()["rows"]
    assert shown[0]["text"].endswith("… (5000000 characters)")
    assert shown[1] == CHINESE
    assert shown[2]["list"][-1] == "… (5000 items)"
    write(page, "many.jsonl", *[{"text": "x" * 19_000}] * 400)
    many = page.http.get("/api/data/rows", params={"dataset": "many.jsonl", "folder": str(page.data), "count": 400})
    assert len(many.content) < 3_000_000


def test_no_rows(page: Page) -> None:
    write(page, "x.jsonl")
    assert (rows(page, "x.jsonl")["rows"], rows(page, "x.jsonl")["total"]) == ([], 0)


@pytest.mark.parametrize(
    ("dataset", "folder", "status"),
    [
        ("../runs/secret.jsonl", "", 404),
        ("/etc/passwd", "", 404),
        ("..", "", 404),
        ("link.jsonl", "", 403),
        ("x" * 300, "", 404),
        ("a\0b", "", 404),
        ("x.jsonl", "/etc", 403),
        ("x.jsonl", "../..", 403),
        ("gone.jsonl", "", 404),
        ("notes.md", "", 422),
        ("dataset_info.json", "", 404),
        ("outside", "", 422),
        ("through_link", "", 422),
        ("hub", "", 409),
    ],
)
def test_what_lies_outside_is_not_read(page: Page, tmp_path: Path, dataset: str, folder: str, status: int) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"canary": 1}\n')
    (tmp_path / "runs/secret.jsonl").write_text('{"canary": 1}\n')
    (page.data / "link.jsonl").symlink_to(secret)
    write(page, "x.jsonl", CHINESE)
    write(page, "notes.md", "text")
    entries = {"outside": {"file_name": "../secret.jsonl"}, "through_link": {"file_name": "link.jsonl"},
               "hub": {"hf_hub_url": "a/b"}}  # fmt: skip
    (page.data / "dataset_info.json").write_text(json.dumps(entries))
    error = page.get("/data/rows", status, dataset=dataset, folder=folder or str(page.data))
    assert "canary" not in json.dumps(error)


def test_mappings_are_guessed(page: Page) -> None:
    write(page, "a.jsonl", {"instruction": "q", "input": "", "output": "a"})
    write(page, "m.jsonl", {"messages": [{"role": "user", "content": "q"}]})
    write(page, "s.jsonl", {"conversations": [], "system": ""})
    write(page, "p.jsonl", {"instruction": "q", "chosen": "a", "rejected": "b"})
    write(page, "t.txt", "words")

    def guessed(name: str) -> tuple:
        found = page.get("/data/mapping", dataset=name, folder=str(page.data))
        return found["format"], found["columns"], found["entry"].get("ranking", False)

    assert guessed("a.jsonl") == ("alpaca", {"prompt": "instruction", "query": "input", "response": "output"}, False)
    assert guessed("m.jsonl") == ("openai", {"messages": "messages"}, False)
    assert guessed("s.jsonl") == ("sharegpt", {"messages": "conversations", "system": "system"}, False)
    assert guessed("p.jsonl") == (
        "alpaca",
        {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        True,
    )
    assert guessed("t.txt") == ("text", {"prompt": "text"}, False)


def test_mappings_are_written_for_uploads_only(page: Page) -> None:
    page.put("/data/uploads/x.jsonl", b'{"question": "q", "reply": "a"}\n')
    folder = str(page.uploads)
    columns = {"prompt": "question", "response": "reply"}
    asked = {"format": "alpaca", "columns": columns, "entry": {}}
    written = page.put("/data/mapping", asked, dataset="x.jsonl", folder=folder)
    assert written["entry"] == {"file_name": "x.jsonl", "formatting": "alpaca", "columns": columns}
    assert json.loads((page.uploads / "dataset_info.json").read_text()) == {"x.jsonl": written["entry"]}
    assert page.get("/data/mapping", dataset="x.jsonl", folder=folder)["columns"] == columns
    wrong = {**asked, "columns": {"prompt": "nothing"}}
    assert (
        "there are: question, reply"
        in page.put("/data/mapping", wrong, 422, dataset="x.jsonl", folder=folder)["message"]
    )
    more = {**asked, "entry": {"script_url": "x.py"}}
    page.put("/data/mapping", {**more, "entry": {"unknown": 1}}, 422, dataset="x.jsonl", folder=folder)
    write(page, "y.jsonl", CHINESE)
    refused = page.put("/data/mapping", asked, 403, dataset="y.jsonl", folder=str(page.data))
    assert "not the page's to write" in refused["message"]
    assert not (page.data / "dataset_info.json").exists()
