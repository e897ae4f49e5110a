"""Texts whose last answer has ended already: TRL would put one more end token behind the blanks that follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.log import say_once


def one_end(made: dict[str, Any], field: str) -> None:
    """Tokenize texts that end with the end token and blanks as they are, in the arguments of a trainer."""
    tokenizer: Any = made.get("processing_class")
    end: str | None = getattr(tokenizer, "eos_token", None)
    if not end or made.get("formatting_func") is not None:
        return
    for name in ("train_dataset", "eval_dataset"):
        rows = made.get(name)
        made[name] = (
            {key: _tokenized(each, tokenizer, end, field) for key, each in rows.items()}
            if isinstance(rows, Mapping)
            else _tokenized(rows, tokenizer, end, field)
        )


def _tokenized(rows: Any, tokenizer: Any, end: str, field: str) -> Any:
    columns = getattr(rows, "column_names", None) or ()
    if field not in columns or "input_ids" in columns:
        return rows
    text = next(iter(rows), {}).get(field)
    if not isinstance(text, str) or text.endswith(end) or not text.rstrip().endswith(end):
        return rows
    say_once(f"texts end with {end} and blanks: they are kept as they are, without one more {end}")

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [text if text.rstrip().endswith(end) else text + end for text in batch[field]]
        return {"input_ids": tokenizer(texts)["input_ids"]}

    return rows.map(tokenize, batched=True)
