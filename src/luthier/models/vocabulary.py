"""Words added to a vocabulary: to the tokenizer, and as rows of the embedding and the head."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.log import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from luthier.config.schema import ModelConfig

_LEARN_WHOLE = ("modules_to_save", "extra_modules")
"""Settings of tunings that name modules that learn whole."""


def add_words(tokenizer: Any, config: ModelConfig) -> None:
    """Add `add_tokens` and `add_special_tokens`; those that are there already stay as they are."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    plain = [AddedToken(word, special=False, normalized=False) for word in config.add_tokens if word not in known]
    special = [AddedToken(word, special=True) for word in config.add_special_tokens if word not in known]
    if plain:
        tokenizer.add_tokens(plain)
    if special:
        tokenizer.add_tokens(special, special_tokens=True)


def grow(model: Any, tokenizer: Any, old: Any, texts: Mapping[str, str]) -> None:
    """Give the words that `tokenizer` has and the base's own `old` has not a row each.

    A row begins as the mean of the rows of the pieces that `old` cuts the word into, or its text where `texts` has one,
    and likewise its row of the head.
    """
    known = old.get_vocab()
    fresh = sorted((i, word) for word, i in tokenizer.get_vocab().items() if word not in known)
    if not fresh:
        return
    enlarge(model, fresh[-1][0] + 1)
    tables = {id(table): table for table in _tables(model)}.values()
    pieces = [(i, old(texts.get(word, word), add_special_tokens=False)["input_ids"]) for i, word in fresh]
    with torch.no_grad():
        for table in tables:
            usual = table.weight[: len(old)].float().mean(dim=0)
            for i, parts in pieces:
                row = table.weight[parts].float().mean(dim=0) if parts else usual
                table.weight[i] = row.to(table.weight.dtype)
    logger.info("vocabulary: %d new words, such as %r, begin as the mean of their pieces", len(fresh), fresh[0][1])


def enlarge(model: Any, rows: int) -> None:
    """Let embedding and head have `rows` rows at least; new ones are the mean of the old."""
    plain = plain_model(model)
    before = plain.get_input_embeddings().weight.shape[0]
    if rows <= before:
        return
    plain.resize_token_embeddings(rows, mean_resizing=False)
    plain.requires_grad_(False)
    with torch.no_grad():
        for table in {id(table): table for table in _tables(plain)}.values():
            table.weight[before:] = table.weight[:before].float().mean(dim=0).to(table.weight.dtype)


def _tables(model: Any) -> list[Any]:
    plain = plain_model(model)
    return [table for table in (plain.get_input_embeddings(), plain.get_output_embeddings()) if table is not None]


def rows_learn(tuning: Any, model: Any) -> Any:
    """Return the tuning with embedding and head learning whole, so that new rows do; raises ConfigError."""
    if tuning.base_learns and not hasattr(tuning, "extra_modules"):
        return tuning
    setting = next((name for name in _LEARN_WHOLE if name in {each.name for each in fields(tuning)}), None)
    if setting is None:
        raise ConfigError(
            f"new words need rows that learn, but {type(tuning).__name__.lower()} tuning keeps the embedding frozen; "
            "set finetuning_type: lora, freeze or full, or leave add_tokens and add_special_tokens out"
        )
    tables = {id(table) for table in _tables(model)}
    names = [name.rpartition(".")[2] for name, module in plain_model(model).named_modules() if id(module) in tables]
    tied = len(tables) > 1 and plain_model(model).config.get_text_config().tie_word_embeddings
    named = [*getattr(tuning, setting), *names[: 1 if tied else None]]
    return replace(tuning, **{setting: tuple(dict.fromkeys(named))})


def refuse_more_words(tokenizer: Any, config: ModelConfig, adapter: Path) -> None:
    """Raise ConfigError when words are added that the adapter that training goes on with has no rows for."""
    known = tokenizer.get_vocab()
    fresh = [word for word in (*config.add_tokens, *config.add_special_tokens) if word not in known]
    if fresh:
        raise ConfigError(
            f"{adapter} has no rows for {fresh[0]!r} and cannot get more; set create_new_adapter: true, which merges "
            "it first, or leave the word out"
        )
