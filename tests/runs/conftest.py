"""Three runs, and an index of them."""

from pathlib import Path

import pytest
from indexed_runs import make

from luthier.runs.index import Index


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path, "a", config={"tuning": {"rank": 16}}, day=1)
    make(tmp_path, "b", config={"objective": {"name": "dpo"}, "train": {"learning_rate": 2e-5}}, day=2, state="failed")
    make(tmp_path, "c", config={"tuning": {"name": "full"}, "model": {"model_name_or_path": "Qwen3-1.7B"}}, day=3)
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file.txt").write_text("x")
    return tmp_path


@pytest.fixture
def index(root: Path):
    found = Index(root)
    found.refresh()
    yield found
    found.close()
