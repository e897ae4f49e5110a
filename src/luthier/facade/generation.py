"""generate as scripts call it: transformers' own, with arguments put right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.anatomy import plain_model
from luthier.facade.disk import load_lora, save_lora, save_pretrained
from luthier.facade.errors import ArgumentError
from luthier.facade.fast import fast_generate, fast_generate_batches
from luthier.facade.held import held_of
from luthier.facade.modes import answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_LEFT_OUT = ("token_type_ids",)
"""What some tokenizers return and decoders do not take."""


def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Answer as transformers' generate does; the first argument or input_ids may be an encoding.

    Padding is the end token unless another one is given. The model is in evaluation mode meanwhile. Raises ValueError
    when prompt and max_new_tokens are more tokens than the model sees.
    """
    args, kwargs = _unpacked(args, kwargs)
    ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    if isinstance(ids, torch.Tensor):
        _check_length(self, ids, kwargs)
        if "generation_config" not in kwargs:
            kwargs.setdefault("pad_token_id", _end(self))
        if kwargs.get("attention_mask") is None and ids.dim() == 2:
            kwargs["attention_mask"] = _mask(self, ids)
    with answering(self):
        return type(self).generate(self, *args, **kwargs)


def _unpacked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments in which an encoding is its parts; what is given by name counts more."""
    parts: dict[str, Any] = {}
    if args and isinstance(args[0], Mapping):
        parts, args = dict(args[0]), args[1:]
    for name in ("input_ids", "inputs"):
        if isinstance(kwargs.get(name), Mapping):
            parts |= dict(kwargs.pop(name))
    merged = {**parts, **kwargs}
    return args, {name: value for name, value in merged.items() if name not in _LEFT_OUT}


def _check_length(model: Any, ids_BL: Tensor, kwargs: dict[str, Any]) -> None:
    config = kwargs.get("generation_config")
    new = kwargs.get("max_new_tokens") or getattr(config, "max_new_tokens", None) or 0
    limit = getattr(plain_model(model).config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and ids_BL.shape[-1] + new > limit:
        raise ArgumentError(
            f"the prompt has {ids_BL.shape[-1]} tokens and max_new_tokens is {new}, but this model sees {limit} "
            "together; shorten one of them, or load the model with a larger max_seq_length"
        )


def _end(model: Any) -> int | None:
    end = plain_model(model).generation_config.eos_token_id
    return end[0] if isinstance(end, list) else end


def _mask(model: Any, ids_BL: Tensor) -> Tensor:
    """Return which tokens are no padding, where the tokenizer pads with a token that ends nothing."""
    tokenizer = held_of(model).tokenizer
    pad = tokenizer.pad_token_id
    return torch.ones_like(ids_BL) if pad in (None, tokenizer.eos_token_id) else (ids_BL != pad).long()


METHODS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "fast_generate": fast_generate,
    "fast_generate_batches": fast_generate_batches,
    "save_pretrained": save_pretrained,
    "save_lora": save_lora,
    "load_lora": load_lora,
}
