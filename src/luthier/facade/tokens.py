"""New tokens: a word in the tokenizer, a row in the embedding and in the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from luthier.core.anatomy import plain_model
from luthier.core.log import logger, say_once
from luthier.core.registry import did_you_mean
from luthier.facade.errors import ArgumentError
from luthier.facade.held import held_of
from luthier.models.adapters import has_adapter
from luthier.models.vocabulary import enlarge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_UNTRAINED = 1e-6
"""Rows whose largest number is smaller hold no token that was ever learned."""


def add_new_tokens(
    model: Any,
    tokenizer: Any,
    new_tokens: Sequence[str] = (),
    method: str = "mean",
    interpolation: float = 0.5,
) -> None:
    """Add words to the tokenizer and rows to the model, both in place; words that are there already are skipped.

    `method`: a row begins as the mean of the trained ones ("mean"), or between that and the mean of the pieces that
    the word was cut into before, at `interpolation` of the way ("interpolation"). Matrices never get smaller, and tied
    ones stay tied. An adapter that get_peft_model adds afterwards learns embedding and head whole.

    Raises ArgumentError for a method that is unknown or an adapter that is there already.
    """
    held = held_of(model)
    if method not in _METHODS:
        raise ArgumentError(
            f"add_new_tokens: method {method!r} is unknown{did_you_mean(method, list(_METHODS))}; there are: "
            f"{', '.join(_METHODS)}"
        )
    if not 0 <= interpolation <= 1:
        raise ArgumentError(f"add_new_tokens: interpolation is {interpolation}; it lies between 0 and 1")
    if has_adapter(model):
        raise ArgumentError(
            "add_new_tokens comes before get_peft_model: the adapter has the rows of the old vocabulary"
        )
    known = tokenizer.get_vocab()
    words = [word for word in dict.fromkeys(new_tokens) if word not in known]
    if len(words) < len(set(new_tokens)):
        say_once(f"{len(set(new_tokens)) - len(words)} of the new tokens are in the vocabulary already")
    if not words:
        return
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    trained = len(tokenizer)
    tokenizer.add_tokens(words)
    ids = tokenizer.convert_tokens_to_ids(words)
    _make_room(model, max(ids) + 1)
    plain = plain_model(model)
    tables = {id(t): t for t in (plain.get_input_embeddings(), plain.get_output_embeddings()) if t is not None}
    with torch.no_grad():
        for table in tables.values():
            rows = table.weight[:trained].float()
            usual = rows[rows.abs().amax(dim=1) > _UNTRAINED].mean(dim=0)
            for number, parts in zip(ids, pieces, strict=True):
                table.weight[number] = _METHODS[method](usual, rows[parts], interpolation).to(table.weight.dtype)
    held.num_new_tokens += len(words)
    logger.info("vocabulary: %d new tokens, such as %r; the model has %d rows", len(words), words[0],
                plain.get_input_embeddings().weight.shape[0])  # fmt: skip


def _between(usual: Tensor, pieces: Tensor, share: float) -> Tensor:
    """Return a row [D] between the usual one [D] and the mean of those of the pieces [P, D]."""
    return torch.lerp(usual, pieces.mean(dim=0), share) if len(pieces) else usual


_METHODS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "mean": lambda usual, pieces, share: usual,
    "interpolation": _between,
}


def _make_room(model: Any, rows: int) -> None:
    """Let the tables have `rows` rows at least; what learned before learns afterwards."""
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    enlarge(model, rows)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learned)
