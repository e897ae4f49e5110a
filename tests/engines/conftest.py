"""A tiny random Llama for tests of the decoder."""

from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer
from tunings import fresh

from luthier.engines.local import LocalEngine


@pytest.fixture
def model(tiny: Path) -> Any:
    return fresh(tiny)


@pytest.fixture
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> LocalEngine:
    return LocalEngine(model, tokenizer, batch_size=32)
