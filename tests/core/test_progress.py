"""How far a process is, told in a file."""

import json
from pathlib import Path

import pytest

from luthier.core import log
from luthier.core.log import progress


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(log, "_told", {})
    return tmp_path / "progress.json"


def told(file: Path) -> list[object]:
    return [*json.loads(file.read_text()).values()]


def test_told_whole_twice_a_second_and_at_the_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    progress(1, 10, "reading")
    progress(2, 10, "reading")
    assert told(file) == [1, 10, "reading"]
    now[0] += 0.6
    progress(3, 10, "reading")
    assert told(file) == [3, 10, "reading"]
    progress(0, None, "another thing")
    assert told(file) == [0, None, "another thing"]
    progress(1, None, "another thing")
    assert told(file) == [0, None, "another thing"]
    progress(10, 10, "reading")
    assert told(file) == [10, 10, "reading"]
    assert [path.name for path in file.parent.iterdir()] == ["progress.json"]


def test_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTHIER_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    progress(1, 1, "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_ends_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.setattr(log.logger, "info", said.append)
    monkeypatch.setenv("LUTHIER_PROGRESS", str(file.parent / "gone/progress.json"))
    for place in range(3):
        progress(place, place, "x")
    assert len(said) == 1


def test_other_ranks_keep_silent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    progress(1, 1, "x")
    assert not file.exists()
