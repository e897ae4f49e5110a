"""Files of a run as downloads: whatever a path or a link says, nothing outside is read."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Page, asking
from run_folders import make_run

CANARY = "canary outside"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    with asking(tmp_path) as found:
        run = make_run(found.state.roots.runs, "a")
        (run / "inner").mkdir()
        (run / 'inner/ä 你好 ".txt').write_text("0123456789")
        (run / "page.html").write_text("<script>alert(1)</script>")
        (tmp_path / "outside.txt").write_text(CANARY)
        (tmp_path / "runs_evil").mkdir()
        (tmp_path / "runs_evil/x.txt").write_text(CANARY)
        (found.state.roots.runs / ".luthier/inner.txt").write_text(CANARY)
        (run / "link.txt").symlink_to(tmp_path / "outside.txt")
        (run / "folder").symlink_to(tmp_path)
        (run / "loop").symlink_to(run / "loop")
        (run / "device").symlink_to("/dev/zero")
        os.mkfifo(run / "pipe")
        with socket.socket(socket.AF_UNIX) as unix:
            monkeypatch.chdir(run)  # the path of a socket is short
            unix.bind("socket")
        yield found


OUTSIDE = [
    "../../outside.txt", "..%2f..%2foutside.txt", "%2e%2e/%2e%2e/outside.txt", "..%252f..%252foutside.txt", "..\\..\\outside.txt",
    "..%5c..%5coutside.txt", "%00", "config.yaml%00.txt", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "~/x", "~root/x",
    "inner/../../../outside.txt", "inner/%2e%2e/config.yaml", "%2e/config.yaml", "inner//x", "inner/", "", "%2e", "%2e%2e", "inner",
    "link.txt", "folder/outside.txt", "folder", "loop", "loop/x", "device", "pipe", "socket", "../b/x", "config.yaml/x",
    "....//....//outside.txt", "..;/outside.txt", "%c0%ae%c0%ae/outside.txt", "\u2025/outside.txt", "\uff0e\uff0e/outside.txt",
    "CONFIG.YAML", "config.yaml.", "config.yaml ", "x" * 300, "a/" * 3000, "file:///etc/passwd", "C:\\x", "\\\\host\\x",
    "/proc/self/environ", "../.luthier/inner.txt", "../../runs_evil/x.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_lead_elsewhere(page: Page, path: str) -> None:
    began = time.monotonic()
    reply = page.http.get(f"/api/runs/a/files/{path}")
    assert reply.status_code in (403, 404), reply.text
    assert CANARY not in reply.text
    assert "root:" not in reply.text
    assert len(reply.content) < 4096
    assert time.monotonic() - began < 5, "it waited for something"


RUNS = ["..", ".", "..%2fruns_evil", "%2e%2e%2fruns_evil", "../runs_evil", "%2e%2e", ".luthier", "a%2f..%2fa", "a%00", "A" * 300,
        "~", "a\\..\\a", "evil", "%252e%252e"]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "rest", ["", "/files", "/files/x.txt", "/log", "/curves", "/events", "/samples", "/evaluations"]
)
def test_names_of_runs_that_lead_elsewhere(page: Page, run: str, rest: str, tmp_path: Path) -> None:
    (page.state.roots.runs / "evil").symlink_to(tmp_path / "runs_evil")
    reply = page.http.get(f"/api/runs/{run}{rest}")
    assert reply.status_code in (401, 403, 404) or "<!doctype" in reply.text or run in (".", ".."), reply.text
    assert CANARY not in reply.text


@pytest.mark.parametrize("run", RUNS)
def test_nothing_outside_can_be_deleted_or_changed(page: Page, run: str, tmp_path: Path) -> None:
    (page.state.roots.runs / "evil").symlink_to(tmp_path / "runs_evil")
    page.http.delete(f"/api/runs/{run}")
    page.http.patch(f"/api/runs/{run}", json={"name": "x"})
    assert (tmp_path / "runs_evil/x.txt").read_text() == CANARY
    assert not (tmp_path / "runs_evil/notes.json").exists()
    assert (tmp_path / "outside.txt").read_text() == CANARY
    assert (page.state.roots.runs / ".luthier/inner.txt").exists()


def test_a_link_that_is_swapped_while_it_is_read(page: Page, tmp_path: Path) -> None:
    run = page.state.roots.runs / "a"
    stop = threading.Event()

    def swap() -> None:
        (run / "plain").write_text("plain")
        (run / "real").mkdir()
        (run / "real/outside.txt").write_text("plain")
        while not stop.is_set():
            for name, plain, target in (
                ("swap.txt", run / "plain", tmp_path / "outside.txt"),
                ("swap", run / "real", tmp_path),
            ):
                for source in (plain, target):
                    (run / "next").symlink_to(source)
                    (run / "next").rename(run / name) if not (run / name).is_dir() or (
                        run / name
                    ).is_symlink() else None
            os.link(run / "plain", run / "next2")
            os.replace(run / "next2", run / "swap.txt")

    writer = threading.Thread(target=swap)
    writer.start()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for path in ("swap.txt", "swap/outside.txt"):
            assert CANARY not in page.http.get(f"/api/runs/a/files/{path}").text
    stop.set()
    writer.join()


def test_the_list_has_plain_files_alone(page: Page) -> None:
    found = {each["path"]: each["bytes"] for each in page.get("/runs/a/files")}
    assert found['inner/ä 你好 ".txt'] == 10
    assert set(found) == {"config.yaml", "status.json", "events.jsonl", "log.txt", "page.html", 'inner/ä 你好 ".txt'}


def test_a_download_is_never_a_page(page: Page) -> None:
    reply = page.http.get("/api/runs/a/files/page.html")
    assert reply.text == "<script>alert(1)</script>"
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["content-disposition"].startswith('attachment; filename="page.html"')
    assert reply.headers["x-content-type-options"] == "nosniff"
    named = page.http.get('/api/runs/a/files/inner/ä 你好 ".txt')
    assert "\n" not in named.headers["content-disposition"]
    assert "filename*=UTF-8''%C3%A4%20%E4%BD%A0%E5%A5%BD%20%22.txt" in named.headers["content-disposition"]


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        ("bytes=0-3", 206, "0123"), ("bytes=7-", 206, "789"), ("bytes=-2", 206, "89"), ("bytes=5-500", 206, "56789"),
        ("bytes=-500", 206, "0123456789"), ("bytes=10-", 416, ""), ("bytes=5-2", 416, ""), ("bytes=-", 416, ""),
        ("bytes=-0", 416, ""), ("lines=1-2", 416, ""), ("bytes=0-1,3-4", 416, ""), ("bytes=" + "0-1," * 10_000, 416, ""),
        ("bytes=" + "9" * 19 + "-", 416, ""), ("bytes=a-b", 416, ""),
    ],
)  # fmt: skip
def test_parts_of_a_file(page: Page, asked: str, status: int, text: str) -> None:
    reply = page.http.get('/api/runs/a/files/inner/ä 你好 ".txt', headers={"Range": asked})
    assert reply.status_code == status
    if status == 206:
        assert reply.text == text
        begin = "0123456789".index(text)
        assert reply.headers["content-range"] == f"bytes {begin}-{begin + len(text) - 1}/10"


def test_a_report_that_is_nested_too_deeply_is_damaged(page: Page) -> None:
    (page.state.roots.runs / "a/verify.json").write_text("[" * 100_000)
    reply = page.http.get("/api/runs/a/files/verify.json", headers={"Accept": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "file_damaged")


def test_a_large_file_comes_whole_in_parts(page: Page) -> None:
    run = page.state.roots.runs / "a"
    data = os.urandom(3_000_000)
    (run / "large.bin").write_bytes(data)
    assert page.http.get("/api/runs/a/files/large.bin").content == data
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        page.http.get("/api/runs/a/files/large.bin", headers={"Range": "bytes=1-5"})
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_run_that_is_deleted_under_the_page(page: Page) -> None:
    run = page.state.roots.runs / "a"
    run.rename(run.with_name("b"))
    for path in ("", "/files", "/files/config.yaml", "/log", "/curves", "/samples", "/events"):
        assert page.get(f"/runs/a{path}", 404)["code"] == "run_missing"
