"""Deleting a run: all of it or nothing, undone in time, and nothing outside is touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core.errors import RunError
from luthier.runs import trash
from luthier.runs.job_files import JobSpec
from luthier.runs.jobs import Jobs
from luthier.runs.process import Identity
from luthier.runs.store import RunStore, is_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for name in ("a", "b"):
        (root / name / "checkpoint-3").mkdir(parents=True)
        (root / name / "export/gguf").mkdir(parents=True)
        (root / name / "status.json").write_text(json.dumps({"state": "done"}))
        (root / name / "config.yaml").write_text("model: {}\n")
        (root / name / "checkpoint-3/weights").write_bytes(b"x" * 1000)
        (root / name / "export/gguf/file").write_bytes(b"y" * 500)
    return root


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_goes_is_told_beforehand(root: Path) -> None:
    found = trash.contents(root / "a")
    assert (found.files, found.checkpoints, found.exports) == (4, 1, ["gguf"])
    assert found.bytes == sum(path.stat().st_size for path in (root / "a").rglob("*") if path.is_file())
    assert is_run(root / "a")


def test_deleted_and_brought_back(root: Path) -> None:
    before = files(root / "a")
    entry = trash.delete(root, "a")
    assert (entry.run, entry.undo_until, is_run(root / "a")) == ("a", entry.deleted + 30, False)
    assert abs(entry.deleted - time.time()) < 2
    assert trash.purge(root) == 0
    assert files(trash.undelete(root, "a")) == before
    assert trash.entries(root) == []
    with pytest.raises(RunError, match="not in the trash"):
        trash.undelete(root, "a")


def test_after_half_a_minute_it_is_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = trash.delete(root, "a")
    now = time.time()
    monkeypatch.setattr(trash.time, "time", lambda: now + 31)
    assert trash.purge(root) == 1
    assert not entry.path.exists()
    assert os.listdir(root / ".luthier/trash") == []
    assert is_run(root / "b")


@pytest.mark.parametrize(
    ("deleted", "looked", "removed"), [(0.9, 0.9, 0), (0.9, 0.0, 0), (0.1, 29.9, 0), (0.1, 30.1, 1)]
)
def test_it_is_kept_for_half_a_minute_and_no_less(
    root: Path, monkeypatch: pytest.MonkeyPatch, deleted: float, looked: float, removed: int
) -> None:
    now = [1_800_000_000 + deleted]
    monkeypatch.setattr(trash.time, "time", lambda: now[0])
    trash.delete(root, "a")
    now[0] = 1_800_000_000 + looked
    assert trash.purge(root) == removed


def test_a_clock_that_jumped_back_keeps_nothing_for_ever(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trash.delete(root, "a")
    now = time.time()
    monkeypatch.setattr(trash.time, "time", lambda: now - 86_400)
    assert trash.purge(root) == 1


def test_the_one_deleted_last_comes_back_and_nothing_is_written_over(root: Path) -> None:
    trash.delete(root, "a")
    (root / "b").rename(root / "a")
    (root / "a/second").touch()
    with pytest.raises(RunError, match="is there again"):
        trash.undelete(root, "a")
    time.sleep(1.1)
    trash.delete(root, "a")
    assert (trash.undelete(root, "a") / "second").exists()


def test_a_name_with_dashes_comes_back_under_it(root: Path) -> None:
    (root / "a").rename(root / "1-2--three")
    trash.delete(root, "1-2--three")
    assert trash.undelete(root, "1-2--three").name == "1-2--three"


def test_a_run_in_use_is_refused(root: Path) -> None:
    status = {"state": "running", "process": Identity.here().as_dict()}
    (root / "a/status.json").write_text(json.dumps(status))
    with pytest.raises(RunError, match=r"in use \(running\); stop it first"):
        trash.delete(root, "a")
    holder = RunStore.open(root / "b", "x: 1\n")
    try:
        with pytest.raises(RunError, match="in use"):
            trash.delete(root, "b")
    finally:
        holder.close()
    assert trash.delete(root, "b").path.is_dir()
    assert is_run(root / "a")


def test_a_crashed_run_can_go(root: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    gone = Identity.of(child.pid)
    child.wait()
    (root / "a/status.json").write_text(json.dumps({"state": "running", "process": gone.as_dict()}))
    assert trash.delete(root, "a").path.is_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../outside", ".luthier", "a/checkpoint-3", "missing", "a\0b", "a\\..\\b"]
)
def test_only_runs_of_this_folder(root: Path, name: str) -> None:
    (root.parent / "outside").mkdir()
    before = files(root.parent)
    with pytest.raises(RunError, match="no run called"):
        trash.delete(root, name)
    assert [path for path in files(root.parent) if ".luthier" not in path] == before


def test_links_are_never_followed(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "canary").write_text("lives")
    (root / "a/data").symlink_to(outside)
    (root / "a/file").symlink_to(outside / "canary")
    (root / "linked").symlink_to(outside)
    assert trash.contents(root / "a").bytes < 2000
    for name in ("a", "linked"):
        trash.delete(root, name)
    assert trash.purge(root, older_than=0) == 2
    assert (outside / "canary").read_text() == "lives"
    assert os.listdir(root / ".luthier/trash") == []


DELETING = "import sys; from pathlib import Path; from luthier.runs import trash; trash.delete(Path(sys.argv[1]), 'a')"
PURGING = "import sys; from pathlib import Path; from luthier.runs import trash; trash.purge(Path(sys.argv[1]), 0)"


@pytest.mark.parametrize(
    ("code", "point"), [(DELETING, "trash.before"), (DELETING, "trash.renamed"), (PURGING, "trash.removing")]
)
def test_killed_in_between_there_is_a_run_or_an_entry(root: Path, code: str, point: str) -> None:
    before = files(root / "a")
    if code is PURGING:
        trash.delete(root, "a")
    fault = {"LUTHIER_TESTING": "1", "LUTHIER_FAULT": f"{point}:kill"}
    done = subprocess.run([sys.executable, "-c", code, str(root)], env={**os.environ, **fault}, check=False)
    assert done.returncode == -signal.SIGKILL
    if code is PURGING:
        # What is being removed cannot be brought back half, and the next one removes the rest.
        assert (trash.entries(root), trash.purge(root), os.listdir(root / ".luthier/trash")) == ([], 1, [])
        return
    found = root / "a" if (root / "a").exists() else trash.entries(root)[0].path
    assert files(found) == before
    assert (root / "a").exists() != bool(trash.entries(root))


def test_a_run_that_a_job_is_about_to_go_on_with_stays(root: Path) -> None:
    jobs = Jobs(root)
    jobs.add(JobSpec(request_id="goes-on-1", kind="train", command=(sys.executable, "-c", ""), run="a"))
    with pytest.raises(RunError, match="goes-on-1 .* cancel or stop it first") as caught:
        trash.delete(root, "a")
    assert caught.value.code == "run_locked"
    assert is_run(root / "a")
    jobs.act("goes-on-1", "cancel")
    trash.delete(root, "a")
    assert not is_run(root / "a")
