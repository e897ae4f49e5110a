"""How far a process is, told in a file."""

import json
from pathlib import Path

import pytest

from luthier.core import log
from luthier.core import progress as module
from luthier.core.progress import following, one_part, parts, progress, within


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(module, "_told", {})
    return tmp_path / "progress.json"


def told(file: Path) -> list[object]:
    return [*json.loads(file.read_text()).values()]


def test_told_whole_twice_a_second_and_at_the_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
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


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TELL_SECONDS", 0.0)


@pytest.mark.usefixtures("often")
def test_parts_of_parts_are_one_bar(file: Path) -> None:
    seen: list[object] = []
    with parts(2) as models:
        for name in ("a", "b"):
            with models.part(), parts(2) as kinds:
                with kinds.part(f"{name}: loss"):
                    within(1, 4)
                    seen.append(told(file))
                    progress(7, None, "reading rows")
                    seen.append(told(file))
                with kinds.part(f"{name}: generate"):
                    for number, _ in enumerate(following("xyzw")):
                        if number == 2:
                            seen.append(told(file))
    assert seen == [
        [625, 10_000, "a: loss"], [625, 10_000, "reading rows"], [3750, 10_000, "a: generate"],
        [5625, 10_000, "b: loss"], [5625, 10_000, "reading rows"], [8750, 10_000, "b: generate"],
    ]  # fmt: skip
    progress(1, 2, "alone")
    assert told(file) == [1, 2, "alone"]


@pytest.mark.usefixtures("often")
def test_the_bar_never_goes_back(file: Path) -> None:
    with parts(2) as work, work.part("w"):
        within(3, 4)
        within(1, 4)
        assert told(file)[0] == 3750
        with parts(1), one_part():
            assert told(file)[0] == 3750
        for _ in range(3):
            with one_part():
                pass
        assert told(file)[0] == 10_000, "more than was said is no more than all"


@pytest.mark.usefixtures("often")
def test_an_error_closes_what_it_leaves(file: Path) -> None:
    def fail() -> None:
        with parts(1) as work, work.part():
            for _ in following([1, 2, 3]):
                raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert module._open == []
    with parts(4) as work, work.part("next"):
        assert told(file) == [0, 10_000, "next"]


def test_what_nobody_counts_says_nothing(file: Path) -> None:
    within(1, 2)
    assert list(following([1, 2])) == [1, 2]
    with one_part():
        pass
    assert not file.exists()


def test_many_parts_are_told_twice_a_second(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, writes = [100.0], 0
    real = module.os.replace

    def replace(*paths: str) -> None:
        nonlocal writes
        writes += 1
        real(*paths)

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "replace", replace)
    with parts(1) as work, work.part("tensors"):
        for _ in following(range(1000)):
            now[0] += 0.01
            within(1, 1)
    assert 19 <= writes <= 22
