"""llama.cpp, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def llama_cpp():
    """Asks llama.cpp."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("cyllama")
    from gguf_llama import LlamaCpp

    asked = LlamaCpp()
    yield asked
    asked.close()
