"""Tiny random models, a byte tokenizer, one thread, no network, no GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"
# Triton kernels run on the processor; TRITON_INTERPRET=0 runs them on the GPU that is there.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from helpers import FAMILIES_OF_EVERY_KIND, TINY_CONFIGS, Jobs, byte_tokenizer, make_folder

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if "smollm2" not in os.environ.get("PYTEST_CURRENT_TEST", ""):
        monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session", params=list(TINY_CONFIGS))
def every_family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model of each family, tokenizer included."""
    return make_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=FAMILIES_OF_EVERY_KIND)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model of each kind of family: for tests that take long."""
    return make_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama."""
    return make_folder("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small alpaca file with Chinese and emoji."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ["tea", "你好", "🙂 ok", "stone", "a longer question about the weather", "x"]
    lines = [{"instruction": f"say {words[i % 6]} {i}", "output": f"{words[(i * 5) % 6]} {i * 7}"} for i in range(24)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of preference rows; the polite answer is chosen."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    words = ["tea", "你好", "🙂 ok", "stone", "a longer question about the weather", "x"]
    lines = [
        {"instruction": f"say {words[i % 6]} {i}", "chosen": f"please {words[(i * 5) % 6]}", "rejected": f"{i * 7} no"}
        for i in range(22)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def jobs():
    """Runs the command line in processes that are forked from one that has everything imported."""
    return Jobs()
