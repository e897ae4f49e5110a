"""The file of the index: damaged, deleted, locked, full or out of reach, it costs time and no answer."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from indexed_runs import ids

from luthier.core import log
from luthier.runs import index_file, notes
from luthier.runs.index import Index


def damage_garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def damage_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"SQLite format 3\0" + b"\xff" * 84)


def other_version(number: int):
    def change(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("UPDATE runs SET name = 'of another version'")

    return change


def other_columns(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE runs")
        connection.execute("CREATE TABLE runs (id TEXT PRIMARY KEY, more TEXT)")


@pytest.mark.parametrize(
    "damage",
    [damage_garbage, damage_half, damage_empty, damage_header, other_version(99), other_version(7), other_columns],
)
def test_a_damaged_index_is_made_anew(root: Path, damage: Any) -> None:
    index = Index(root)
    before = index.search()
    index.close()
    file = root / ".luthier/index.sqlite"
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)
    damage(file)
    again = Index(root)
    assert (ids(again.search()), again.kept) == (ids(before), "file")
    assert again.search()[0][0].name == "c"
    again.close()
    third = Index(root)
    assert (third.refresh(), ids(third.search())) == ([], ["c", "b", "a"])


def test_deleted_under_an_open_handle(index: Index, root: Path) -> None:
    for path in (root / ".luthier").glob("index.sqlite*"):
        path.unlink()
    assert ids(index.search()) == ["c", "b", "a"]
    notes.change(root / "a", name="seen by others")
    index.refresh()
    assert Index(root).search("seen")[1] == 1
    assert (root / ".luthier/index.sqlite").exists()


def test_locked_for_long_it_answers_from_memory_and_goes_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "_BUSY_MILLISECONDS", 50)
    monkeypatch.setattr(index_file, "_AGAIN_SECONDS", 0.3)
    monkeypatch.setattr(log, "_said", set())
    index = Index(root)
    index.refresh()
    lock = sqlite3.connect(root / ".luthier/index.sqlite", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    notes.change(root / "a", tags=["late"])
    index.refresh()
    assert (ids(index.search("late")), index.search()[1], index.kept) == (["a"], 3, "memory")
    lock.execute("ROLLBACK")
    lock.close()
    time.sleep(0.35)
    index.refresh()
    assert (index.kept, ids(index.search("late"))) == ("file", ["a"])


def test_on_a_full_disk_it_answers_from_memory_and_says_so_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(log.logger, "info", said.append)
    monkeypatch.setenv("LUTHIER_TESTING", "1")
    monkeypatch.setenv("LUTHIER_FAULT", "index.write:disk_full")
    monkeypatch.setattr("luthier.core.faults._visits", {})
    index = Index(root)
    for _ in range(3):
        index.refresh()
        assert ids(index.search()) == ["c", "b", "a"]
    assert (index.kept, len(said)) == ("memory", 1)
    assert "kept in memory" in said[0]
    assert "No space" in said[0]


def test_on_a_network_file_system_there_is_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "file_system", lambda folder: "nfs4")
    index = Index(root)
    assert (ids(index.search()), index.kept) == (["c", "b", "a"], "memory")
    assert not (root / ".luthier/index.sqlite").exists()


def test_the_kind_of_a_file_system_is_known() -> None:
    assert index_file.file_system(Path("/proc/self")) == "proc"
