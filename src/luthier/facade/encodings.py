"""Tokenizers whose encodings go where the model is when a script sends them to a GPU that is not here.

A tokenizer keeps its class by name: files that it writes and messages that show it are the ordinary ones. Its class is
found by name in this module, too, so that it can be pickled for other processes and hashed by datasets.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from transformers import BatchEncoding, PreTrainedTokenizerBase

from luthier.core.log import say_once

_made: dict[str, type] = {}


class Encoding(BatchEncoding):
    """Token ids, and how they move."""

    def to(self, device: Any, *, non_blocking: bool = False) -> Any:
        """Move the tensors to `device`, or leave them where the model is when there is no GPU."""
        named = torch.device("cuda", device) if isinstance(device, int) else device
        if str(named).startswith("cuda") and not torch.cuda.is_available():
            say_once('.to("cuda"): there is no GPU here, so inputs go to the processor, where the model is')
            device = "cpu"
        return super().to(device, non_blocking=non_blocking)


class _Movable:
    """Makes what a tokenizer returns an Encoding."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _movable(super().__call__(*args, **kwargs))  # pyright: ignore[reportAttributeAccessIssue]

    def pad(self, *args: Any, **kwargs: Any) -> Any:
        return _movable(super().pad(*args, **kwargs))  # pyright: ignore[reportAttributeAccessIssue]


def _movable(encoding: Any) -> Any:
    if type(encoding) is BatchEncoding:
        encoding.__class__ = Encoding
    return encoding


def make_movable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give `tokenizer` encodings that move as `Encoding` does; one that is code of the model's own stays as it is."""
    name = type(tokenizer).__name__
    if getattr(transformers, name, None) is type(tokenizer):
        tokenizer.__class__ = _class_of(name)


def _class_of(name: str) -> type:
    if name not in _made:
        ordinary = cast("type", getattr(transformers, name))
        facts = {"__module__": __name__, "__qualname__": name, "__doc__": ordinary.__doc__}
        _made[name] = type(name, (_Movable, ordinary), facts)
    return _made[name]


def __getattr__(name: str) -> Any:
    """Return the class of a tokenizer that is unpickled. Raises AttributeError for what is none."""
    ordinary = getattr(transformers, name, None) if name[:1].isupper() else None
    if not isinstance(ordinary, type) or not issubclass(ordinary, PreTrainedTokenizerBase):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class_of(name)
