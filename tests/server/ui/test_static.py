"""The page's own files: kept for ever by name, compressed where that is taken, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from luthier.server.ui.static import PAGE, SCREENS, Static


@pytest.fixture
def http(tmp_path: Path) -> TestClient:
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>page")
    (folder / "assets/app-1a2b.js").write_text("code()")
    (folder / "assets/app-1a2b.js.br").write_bytes(b"BROTLI")
    (folder / "assets/app-1a2b.js.gz").write_bytes(b"GZIP")
    (folder / "icon.svg").write_text("<svg/>")
    (tmp_path / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return TestClient(Static(folder))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/runs",
        "/runs/a-b_c",
        "/compare?runs=a,b",
        "/no/such/place",
        "/%2e%2e/secret",
        "/run/qwen3-1.7b",
        "/data/rows.jsonl?tab=rows",
        "/chat/a/b.gguf",
    ],
)
def test_addresses_of_the_page(http: TestClient, path: str) -> None:
    reply = http.get(path)
    assert (reply.status_code, reply.text) == (200, "<!doctype html>page")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("br, gzip", "br"),
        ("gzip, br;q=0", "gzip"),
        ("br;q=0.0", None),
        ("zstd", None),
        ("BR", "br"),
    ],
)
def test_compressed_forms(http: TestClient, accepted: str, encoding: str | None) -> None:
    with http.stream("GET", "/assets/app-1a2b.js", headers={"Accept-Encoding": accepted}) as reply:
        body = b"".join(reply.iter_raw())
    assert body == {None: b"code()", "gzip": b"GZIP", "br": b"BROTLI"}[encoding]
    assert reply.headers.get("content-encoding") == encoding
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["content-type"].startswith("text/javascript")
    assert reply.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/none.js", "/assets/", "/assets/../index.html", "/assets/app-1a2b.js.br", "/link.txt", "/../secret.txt",
        "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/..%5csecret.txt", "//etc/passwd.x", "/assets/%00.js", "/none.txt",
    ],
)  # fmt: skip
def test_what_is_not_there(http: TestClient, path: str) -> None:
    reply = http.get(path)
    assert reply.status_code == 404 or (reply.status_code == 200 and reply.text == "<!doctype html>page")
    assert "outside" not in reply.text
    if reply.status_code == 404:
        assert reply.json()["error"]["code"] == "http_404"


def test_the_screens_are_those_of_the_page() -> None:
    text = (Path(__file__).parents[3] / "web/src/screens.ts").read_text()
    assert frozenset(re.findall(r"^  (\w+): [A-Z]\w+,$", text, re.MULTILINE)) == SCREENS


def test_a_page_that_is_known_is_not_sent_again(http: TestClient) -> None:
    first = http.get("/")
    again = http.get("/runs", headers={"If-None-Match": f'"x", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_methods(http: TestClient) -> None:
    assert http.head("/").content == b""
    assert http.head("/", headers={"Accept-Encoding": "identity"}).headers["content-length"] == "19"
    assert http.post("/").status_code == 405
    assert http.get("/api/none").json()["error"]["code"] == "http_404"


def test_a_page_that_is_not_built(tmp_path: Path) -> None:
    reply = TestClient(Static(tmp_path / "none")).get("/runs")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "page_missing")


def test_the_page_asks_nobody_else() -> None:
    import re

    index = (PAGE / "index.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", index)
    assert not re.search(r"<script(?![^>]*\bsrc=)", index), "a script in the page itself, which the policy forbids"
    assert not re.search(r"<style|\sstyle=|\son\w+=", index)
