"""Training and inference: what a trainer or a generation wants of the same model."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint

from luthier.core.anatomy import plain_model
from luthier.facade.held import held_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

CHECKPOINTING: dict[Any, bool | None] = {True: True, False: False, "unsloth": None, None: None}
"""Value of use_gradient_checkpointing -> whether activations are computed again; None leaves it to us."""


def for_inference(model: Any) -> Any:
    """Set a model up for answering, in place, and return it: evaluation mode, cache on, prompts padded on the left.

    Raises TypeError for a tokenizer or a model that FastLanguageModel did not make.
    """
    held = _held(model, "for_inference")
    model.eval()
    recompute(model, on=False)
    plain_model(model).config.use_cache = True
    held.tokenizer.padding_side = "left"
    return model


def for_training(model: Any, use_gradient_checkpointing: Any = True) -> Any:
    """Set a model up for learning, in place, and return it; activations are computed again as it was loaded for.

    Raises TypeError for a tokenizer or a model that FastLanguageModel did not make.
    """
    held = _held(model, "for_training")
    model.train()
    recompute(model, on=held.checkpointing is True and bool(use_gradient_checkpointing))
    held.tokenizer.padding_side = "right"
    return model


METHODS: dict[str, Callable[..., Any]] = {"for_inference": for_inference, "for_training": for_training}


def _held(model: Any, call: str) -> Any:
    if not hasattr(model, "parameters"):
        raise TypeError(f"{call} takes the model, and was given a {type(model).__name__}: pass the first of the two "
                        "things that from_pretrained returns")  # fmt: skip
    return held_of(model)


def wants_recomputing(model: Any) -> bool | None:
    """Return what use_gradient_checkpointing said of a model; None where it left it open, or is another's model."""
    try:
        return held_of(model).checkpointing
    except TypeError:
        return None


def recompute(model: Any, *, on: bool) -> None:
    """Let the decoder layers keep their activations, or compute them again in the backward pass."""
    for module in plain_model(model).modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = on
            if on:
                module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


@contextmanager
def answering(model: Any) -> Generator[None]:
    """Be in evaluation mode and keep activations inside the block; each module is then as it was."""
    modules = list(plain_model(model).modules())
    training = [module for module in modules if module.training]
    recomputed: list[Any] = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
    for module in training:
        module.training = False
    for module in recomputed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in recomputed:
            module.gradient_checkpointing = True
