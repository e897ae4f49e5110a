"""A run directory as it is made."""

import stat
from pathlib import Path

from luthier.runs.store import RunStore


def test_nobody_else_reads_a_run_unless_its_owner_lets_them(tmp_path: Path) -> None:
    RunStore.open(tmp_path / "runs" / "first", "").close()
    assert stat.S_IMODE((tmp_path / "runs" / "first").stat().st_mode) == 0o700
    (tmp_path / "runs" / "first").chmod(0o750)
    RunStore.open(tmp_path / "runs" / "first", "").close()
    assert stat.S_IMODE((tmp_path / "runs" / "first").stat().st_mode) == 0o750
