"""Uploads: whole or not at all, of a kind that is rows, never over a file, never where they could do harm."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Page, asking
from starlette.requests import Request

from luthier.server.ui import uploads
from luthier.server.ui.failures import Refused


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with asking(tmp_path) as found:
        yield found


ROW = '{"instruction": "你好", "output": "🙂"}\n'.encode()


def there(page: Page) -> list[str]:
    return sorted(path.name for path in page.uploads.iterdir()) if page.uploads.exists() else []


def test_an_upload_becomes_a_data_set(page: Page) -> None:
    found = page.put("/data/uploads/x.jsonl", ROW * 3)
    assert (found["name"], found["folder"], found["uploaded"], found["bytes"]) == (
        "x.jsonl", str(page.uploads), True, len(ROW) * 3)  # fmt: skip
    assert page.get("/data/rows", dataset="x.jsonl", folder=found["folder"])["total"] == 3
    assert page.get("/data")["datasets"][0]["rows"] == 3
    assert (page.uploads / "x.jsonl").stat().st_mode & 0o077 == 0
    assert page.delete("/data/uploads/x.jsonl") == {"ok": True}
    assert (there(page), [each["name"] for each in page.get("/data")["datasets"]]) == ([], ["example"])
    page.delete("/data/uploads/x.jsonl", 404)


def test_names_of_people_are_kept(page: Page) -> None:
    found = page.put("/data/uploads/我的 数据 (1).JSONL", ROW)
    assert found["source"] == "我的 数据 (1).JSONL"
    assert found["name"] == "1.jsonl"
    assert page.put("/data/uploads/只有中文.csv", "指令,回答\na,b\n".encode())["name"].startswith("data-")
    page.delete("/data/uploads/1.jsonl")
    assert list(uploads.display_names(page.state.roots).values()) == ["只有中文.csv"]


def test_no_file_is_replaced(page: Page) -> None:
    page.put("/data/uploads/x.jsonl", ROW)
    assert page.put("/data/uploads/x.jsonl", ROW * 2, 409)["code"] == "upload_exists"
    assert (page.uploads / "x.jsonl").read_bytes() == ROW
    assert there(page) == ["x.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "status", "says"),
    [
        ("x.exe", ROW, 415, "files may be"),
        ("x", ROW, 415, "files may be"),
        ("x.jsonl", b"", 400, "no bytes"),
        ("x.jsonl", b"PK\x03\x04 spreadsheet", 415, "zip archive"),
        ("x.csv", b"\xff\xfea\0b\0", 415, "iconv"),
        ("x.txt", b"words\0words", 415, "bytes of zero"),
        ("x.json", b"instruction,output\n", 415, "begins with [ or {"),
        ("x.jsonl", b"[1, 2]", 415, "begins with {"),
        ("x.parquet", b"PK\x03\x04", 415, "no parquet"),
        ("a%2Fb.jsonl", ROW, 404, ""),
        ("a%5Cb.jsonl", ROW, 400, "without folders"),
        ("x%00.jsonl", ROW, 400, "cannot be a file name"),
        ("x%0A.jsonl", ROW, 400, "cannot be a file name"),
        (f"{'x' * 300}.jsonl", ROW, 400, "cannot be a file name"),
    ],
)
def test_what_is_no_file_of_rows(page: Page, name: str, content: bytes, status: int, says: str) -> None:
    assert says in page.put(f"/data/uploads/{name}", content, status)["message"]
    assert [each for each in there(page) if each != ".names.json"] == []


@pytest.mark.parametrize(
    ("given", "slug"),
    [("-o x.csv", "o-x.csv"), ("...csv", None), ("$(touch x).txt", "touch-x.txt"), ("CON.csv", None),
     ("dataset_info.json", "uploaded-dataset_info.json"), (".hidden.json", "hidden.json")],
)  # fmt: skip
def test_slugs(given: str, slug: str | None) -> None:
    try:
        found = uploads.slug_of(given)
    except Refused:
        assert slug is None
        return
    assert found == slug if slug else found.startswith("data-")


def test_an_upload_that_is_too_large(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        page.state.max_upload_bytes = 1000
        assert page.put("/data/uploads/x.jsonl", ROW * 100, 413)["code"]

        def chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield ROW

        assert page.http.put("/api/data/uploads/x.jsonl", content=chunks()).status_code == 413
        assert there(page) == []


def test_an_upload_that_is_cut_off(page: Page) -> None:
    import asyncio

    page.uploads.mkdir(parents=True)
    messages = iter([{"type": "http.request", "body": ROW, "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> dict:
        return next(messages)

    def ask(headers: list) -> Request:
        return Request({"type": "http", "method": "PUT", "path": "/", "headers": headers}, receive)  # pyright: ignore

    target = page.uploads / "x.jsonl"
    with pytest.raises(Refused, match="cut off"):
        asyncio.run(uploads.receive(ask([]), target, "x.jsonl", 10**6))
    assert there(page) == []
    messages = iter([{"type": "http.request", "body": ROW, "more_body": False}])
    with pytest.raises(Refused, match=rf"{len(ROW)} of {len(ROW) + 5} bytes arrived"):
        asyncio.run(uploads.receive(ask([(b"content-length", str(len(ROW) + 5).encode())]), target, "x.jsonl", 10**6))
    assert there(page) == []


def test_a_full_disk(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 10**12, "free": 60_000_000})
    monkeypatch.setattr("luthier.server.ui.uploads.shutil.disk_usage", lambda _: usage)
    assert page.put("/data/uploads/x.jsonl", ROW)["bytes"] == len(ROW)
    with pytest.raises(Refused, match="60000000 bytes free"):
        uploads.check_room(page.uploads, 20_000_000)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.server.ui.uploads._give_name", full)
    assert page.put("/data/uploads/y.jsonl", ROW, 507)["code"] == "disk_full"
    assert there(page) == ["x.jsonl"]


def test_an_upload_of_unknown_size_stops_before_the_disk_is_full(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    page.uploads.mkdir(parents=True, exist_ok=True)
    free = [51_000_000]
    monkeypatch.setattr(
        "luthier.server.ui.uploads.shutil.disk_usage",
        lambda _: type("Usage", (), {"total": 10**12, "free": free[0]}),
    )
    monkeypatch.setattr(uploads, "ROOM_BYTES", 10 * len(ROW))

    async def receive() -> dict:
        free[0] -= 50_000
        return {"type": "http.request", "body": ROW, "more_body": True}

    request = Request({"type": "http", "method": "PUT", "path": "/", "headers": []}, receive)  # pyright: ignore
    with pytest.raises(Refused, match="49500000 bytes free"):
        asyncio.run(uploads.receive(request, page.uploads / "x.jsonl", "x.jsonl", 10**6))
    assert there(page) == []


def test_leftovers_of_killed_servers_are_removed(page: Page) -> None:
    import os

    page.put("/data/uploads/x.jsonl", ROW)
    old, fresh = page.uploads / ".part-old", page.uploads / ".part-fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (0, 0))
    page.put("/data/uploads/y.jsonl", ROW)
    assert there(page) == [".part-fresh", "x.jsonl", "y.jsonl"]
    os.utime(fresh, (0, 0))
    with asking(page.data.parent) as again:
        assert there(again) == ["x.jsonl", "y.jsonl"]


def test_entries_go_with_their_file(page: Page) -> None:
    page.put("/data/uploads/x.jsonl", ROW)
    page.put("/data/mapping", {"format": "alpaca", "columns": {"prompt": "instruction"}, "entry": {}},
             dataset="x.jsonl", folder=str(page.uploads))  # fmt: skip
    page.delete("/data/uploads/dataset_info.json", 404)
    page.delete("/data/uploads/x.jsonl")
    assert json.loads((page.uploads / "dataset_info.json").read_text()) == {}


def test_of_two_uploads_at_once_the_second_replaces_nothing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    give = uploads._give_name

    def late(temporary: Path, target: Path) -> None:
        target.write_bytes(b"first\n")  # it became whole while this one was still coming
        give(temporary, target)

    monkeypatch.setattr(uploads, "_give_name", late)
    assert page.put("/data/uploads/x.jsonl", ROW, 409)["code"] == "upload_exists"
    assert (page.uploads / "x.jsonl").read_bytes() == b"first\n"
    assert there(page) == ["x.jsonl"]
