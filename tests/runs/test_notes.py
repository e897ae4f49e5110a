"""What a person says about a run: kept whole, kept together, refused where it would show something else."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import RunError
from luthier.runs import notes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_what_is_not_named_stays(run: Path) -> None:
    assert notes.read(run) == notes.Notes()
    notes.change(run, name=" mein Lauf ", tags=["a", " b ", "a"], notes="<script>alert(1)</script>\n第二行")
    notes.change(run, pinned=True)
    assert notes.change(run, archived=True) == notes.read(run)
    assert notes.read(run) == notes.Notes("mein Lauf", "<script>alert(1)</script>\n第二行", ("a", "b"), True, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a\x1b[31m"}, "control or bidirectional"),
        ({"name": "a\u202egnp.exe"}, "control or bidirectional"),
        ({"name": "x" * 201}, "at most 200 characters; this one has 201"),
        ({"notes": "x" * 20_001}, "at most 20000 characters; these have 20001"),
        ({"tags": ["x" * 65]}, "at most 64 characters"),
        ({"tags": ["a\nb"]}, "control or bidirectional"),
        ({"tags": [str(i) for i in range(51)]}, "at most 50 tags; 51 were given"),
        ({"pinned": "yes"}, "pinned: 'yes' cannot be noted"),
        ({"colour": "red"}, "colour: 'red' cannot be noted"),
    ],
)
def test_what_cannot_be_noted_changes_nothing(run: Path, change: dict[str, Any], said: str) -> None:
    notes.change(run, name="before")
    with pytest.raises(RunError, match=said):
        notes.change(run, **{"archived": True, **change})
    assert notes.read(run) == notes.Notes("before")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"name": 3, "tags": "a", "pinned": "yes"}', "\ud800"])
def test_a_damaged_file_is_as_good_as_none(run: Path, text: str) -> None:
    (run / notes.FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert notes.read(run) == notes.Notes()
    assert notes.change(run, name="new").name == "new"
    assert json.loads((run / notes.FILE).read_text())["name"] == "new"


def test_changes_at_once_are_all_kept(run: Path) -> None:
    def add(tag: str) -> None:
        notes.change(run, **{{"n": "name", "t": "notes"}[tag[0]]: tag})

    for _ in range(10):
        threads = [threading.Thread(target=add, args=(text,)) for text in ("name", "text")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (notes.read(run).name, notes.read(run).notes) == ("name", "text")
        (run / notes.FILE).unlink()


def test_a_run_that_is_gone(run: Path) -> None:
    run.rmdir()
    with pytest.raises(RunError, match="not there"):
        notes.change(run, name="x")


def test_a_full_disk_keeps_what_was_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes.change(run, name="before")
    monkeypatch.setenv("LUTHIER_TESTING", "1")
    monkeypatch.setenv("LUTHIER_FAULT", "write.notes.json:disk_full")
    monkeypatch.setattr("luthier.core.faults._visits", {})
    with pytest.raises(OSError, match="No space"):
        notes.change(run, name="after")
    assert (notes.read(run).name, os.listdir(run)) == ("before", [notes.FILE])
