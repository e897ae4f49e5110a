"""A link that comes to lie where a file was, between the look at its path and the moment it is opened."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asking import Page, asking
from run_folders import make_run

from luthier.config.load import load_config
from luthier.core.findings import Finding
from luthier.data.audit import AuditReport
from luthier.data.audit_files import keep_audit
from luthier.data.row_index import RowFile
from luthier.server.ui import worker_tasks
from luthier.server.ui.failures import Refused
from luthier.server.ui.roots import Roots
from luthier.server.ui.sets import files

ROW = {"instruction": "asking", "output": "saying"}
CANARY = "canary"
LINE = json.dumps({"instruction": CANARY, "output": CANARY}) + "\n"
"""As long as a row inside, so that an audit does not see the change."""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A data folder with `x.jsonl`, a folder below it with one, and both outside, with other rows."""
    with asking(tmp_path) as found:
        for folder in (found.data, found.data / "inner"):
            folder.mkdir(exist_ok=True)
            (folder / "x.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
        (tmp_path / "outside/inner").mkdir(parents=True)
        for path in ("outside/x.jsonl", "outside/inner/x.jsonl"):
            (tmp_path / path).write_text(LINE * 2)
        entries = {"named": {"file_name": "x.jsonl"}, "below": {"file_name": "inner/x.jsonl"}}
        (found.data / "dataset_info.json").write_text(json.dumps(entries))
        (tmp_path / "outside/dataset_info.json").write_text(json.dumps({CANARY: {"file_name": "x.jsonl"}}))
        yield found


def swap(path: Path) -> None:
    """Let `path` lead to what is called so outside, which looks as old."""
    if not path.is_symlink():
        target = next(each for each in path.parents if each.name == "data").parent / "outside" / path.name
        os.utime(target, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        path.rename(path.with_name("before"))
        path.symlink_to(target)


@pytest.fixture
def after_the_look(page: Page, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Swap `looked_at` as soon as its path was found to be inside; without it the file itself."""

    def arm(swapped: Path) -> None:
        real = Roots.inside
        name = swapped.name if swapped.suffix else f"{swapped.name}/x.jsonl"

        def inside(self: Roots, path: str | Path, which: Any) -> Path:
            found = real(self, path, which)
            if str(found).endswith(f"/{name}"):
                swap(swapped)
            return found

        monkeypatch.setattr(Roots, "inside", inside)

    return arm


def audited(path: Path) -> None:
    report = AuditReport()
    for _ in range(2):
        report.begin_row()
        report.add("duplicate", "warning", f"{path}:1", "is twice")
    keep_audit(path, report, 100)


READS: dict[str, Callable[[Page, dict[str, str]], Any]] = {
    "rows": lambda page, named: page.http.get("/api/data/rows", params=named),
    "search": lambda page, named: page.http.get("/api/data/rows", params={**named, "search": CANARY}),
    "columns": lambda page, named: page.http.get("/api/data/mapping", params=named),
    "bad rows": lambda page, named: page.http.get("/api/data/bad-rows", params={**named, "kinds": "duplicate"}),
    "clean": lambda page, named: page.http.post(
        "/api/data/clean", json={**named, "drop": ["duplicate"], "name": "y"}, params={"dry_run": True}
    ),
}


@pytest.mark.parametrize("read", READS)
def test_what_is_swapped_is_not_read(
    page: Page, after_the_look: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    path = page.data / "x.jsonl"
    audited(path)
    named = {"dataset": "x.jsonl", "folder": str(page.data)}
    assert READS[read](page, named).status_code == 200
    files._files.clear()
    if read in ("bad rows", "clean"):  # as late as may be: the audit has been looked up
        real = AuditReport.from_dict
        monkeypatch.setattr(AuditReport, "from_dict", lambda plain: (real(plain), swap(path))[0])
    else:
        after_the_look(path)
    reply = READS[read](page, named)
    assert path.is_symlink(), "the hook was not reached"
    assert reply.status_code == 403, reply.text
    assert CANARY not in reply.text


@pytest.mark.parametrize("read", ["rows", "search"])
def test_a_folder_that_is_swapped_is_not_entered(page: Page, after_the_look: Callable[[Path], None], read: str) -> None:
    after_the_look(page.data / "inner")
    reply = READS[read](page, {"dataset": "below", "folder": str(page.data)})
    assert (page.data / "inner").is_symlink()
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "path_kind")


def test_what_is_swapped_while_it_is_indexed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page.data / "x.jsonl"
    real = RowFile.wait
    monkeypatch.setattr(RowFile, "wait", lambda self, seconds: (real(self, seconds), swap(path)))
    reply = READS["rows"](page, {"dataset": "x.jsonl", "folder": str(page.data)})
    assert (reply.status_code, CANARY in reply.text) == (403, False)


def test_names_of_data_sets_are_not_read_elsewhere(page: Page, after_the_look: Callable[[Path], None]) -> None:
    after_the_look(page.data / "dataset_info.json")
    named = {"dataset": CANARY, "folder": str(page.data)}
    reply = page.http.get("/api/data/rows", params=named)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "path_kind")
    listed = page.http.get("/api/data")
    assert CANARY not in listed.text
    assert "x.jsonl" in listed.text, "files are there whatever their names lead to"


def test_rows_are_not_counted_elsewhere(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page.data / "x.jsonl"
    monkeypatch.setattr("luthier.server.ui.data.kept_audit", lambda found: swap(path) if found == path else None)
    found = {each["name"]: each["rows"] for each in page.get("/data")["datasets"]}
    assert path.is_symlink()
    assert found["named"] is None


def test_tokens_are_not_those_of_another_file(
    page: Page, after_the_look: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = page.data / "x.jsonl"
    values = {"model": {"model_name_or_path": "m"}, "data": {"dataset": ["named"], "dataset_dir": str(page.data)}}
    prepared = SimpleNamespace(kind="answer"), load_config(values)
    monkeypatch.setattr(worker_tasks, "_prepared", lambda *_, **__: prepared)
    monkeypatch.setattr(
        "luthier.workflows.preview.tokens_of", lambda row, *_: SimpleNamespace(where=row.where, value=row.value)
    )
    monkeypatch.setattr(worker_tasks, "asdict", vars)
    asked = {"values": values, "rows": [1], "roots": page.state.roots.as_dict(), "allow_remote_code": False}
    (row,) = worker_tasks.tokens(**asked)["rows"]
    assert (row["where"], row["value"]) == (f"{path}:2", ROW)
    after_the_look(path)
    with pytest.raises(Refused, match="is a link"):
        worker_tasks.tokens(**asked)
    assert path.is_symlink()


@pytest.mark.parametrize("what", ["x.jsonl", "folder"])
def test_a_copy_is_not_made_of_or_in_another_folder(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = page.data / "inner"
    report = AuditReport(findings=[Finding(kind="duplicate", level="warning", where="x", message="m")])
    report.rows, report.places, report.counts["duplicate"] = 2, {"duplicate": [0]}, 1
    keep_audit(folder / "x.jsonl", report, 100)
    real = RowFile.build
    link = folder / "x.jsonl"

    def build(self: RowFile) -> None:
        real(self)
        if what == "x.jsonl" and not link.is_symlink():
            link.unlink()
            link.symlink_to(tmp_path / "outside/inner/x.jsonl")

    real_open = Roots.open_folder

    def open_folder(self: Roots, found: Path, which: Any = "data") -> int:
        if what == "folder":
            swap(folder)
        return real_open(self, found, which)

    monkeypatch.setattr(RowFile, "build", build)
    monkeypatch.setattr(Roots, "open_folder", open_folder)
    asked = {"dataset": "x.jsonl", "folder": str(folder), "drop": ["duplicate"], "name": "y"}
    reply = page.http.post("/api/data/clean", json=asked, params={"dry_run": False})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "path_kind")
    assert CANARY not in reply.text
    assert [path.name for path in (tmp_path / "outside/inner").iterdir()] == ["x.jsonl"]
    assert not list(page.data.rglob("*y.jsonl*"))


@pytest.mark.parametrize("path", ["", "/config.yaml", "/log.txt"])
def test_a_run_that_is_swapped_is_not_read(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    run = make_run(page.state.roots.runs, "a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("config.yaml", "log.txt", CANARY):
        (elsewhere / name).write_text(CANARY)
    assert page.http.get(f"/api/runs/a/files{path}").status_code == 200
    real = Roots.open_folder

    def open_folder(self: Roots, found: Path, which: Any = "data") -> int:
        run.rename(run.with_name("b"))
        run.symlink_to(elsewhere)
        return real(self, found, which)

    monkeypatch.setattr(Roots, "open_folder", open_folder)
    reply = page.http.get(f"/api/runs/a/files{path}")
    assert (reply.status_code, CANARY in reply.text) == (403, False)


def test_the_folder_of_uploads_is_not_followed_elsewhere(page: Page, tmp_path: Path) -> None:
    uploads = page.state.roots.uploads
    uploads.mkdir(parents=True, exist_ok=True)
    (uploads / "x.jsonl").write_text(json.dumps(ROW) + "\n")
    found = page.state.roots.inside("x.jsonl", "data")
    os.close(page.state.roots.open_data(found))
    uploads.rename(uploads.with_name("before"))
    uploads.symlink_to(tmp_path / "outside")
    for opening in (lambda: page.state.roots.open_data(found), lambda: page.state.roots.open_folder(found.parent)):
        with pytest.raises(Refused) as caught:
            opening()
        assert caught.value.status == 403


def test_a_machine_without_descriptors_is_not_a_file_that_is_missing(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = page.state.roots.inside(page.data / "x.jsonl", "data")

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("luthier.server.ui.roots.os.open", full)
    with pytest.raises(Refused, match="Too many open files") as caught:
        page.state.roots.open_data(found)
    assert (caught.value.status, caught.value.code) == (500, "system")


def test_links_within_the_folders_lead_to_their_files(page: Page) -> None:
    (page.data / "link.jsonl").symlink_to("inner/x.jsonl")
    (page.data / "folder").symlink_to("inner")
    (page.data / "info").mkdir()
    (page.data / "info/dataset_info.json").symlink_to("../inner/names.json")
    (page.data / "info/x.jsonl").symlink_to(page.data / "x.jsonl")
    (page.data / "inner/names.json").write_text(json.dumps({"again": {"file_name": "y.jsonl"}}))
    (page.data / "info/y.jsonl").write_text(json.dumps(ROW) + "\n")
    for dataset, folder in (("link.jsonl", ""), ("x.jsonl", "folder"), ("x.jsonl", "info"), ("again", "info")):
        named = page.data / folder
        assert page.get("/data/rows", dataset=dataset, folder=str(named))["rows"][0] == ROW
        assert page.get("/data/mapping", dataset=dataset, folder=str(named))["format"] == "alpaca"
    run = make_run(page.state.roots.runs, "a")
    run.with_name("again").symlink_to("a")
    assert page.http.get("/api/runs/again/files/config.yaml").content == (run / "config.yaml").read_bytes()
    assert {each["path"] for each in page.get("/runs/again/files")} >= {"config.yaml"}
