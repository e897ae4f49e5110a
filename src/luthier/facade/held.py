"""What is known about a model beyond its tensors: what was asked for, where its files are, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.config.schema import ModelConfig
from luthier.core.anatomy import plain_model
from luthier.models.load import ModelFiles

_HELD = "_luthier_held"


@dataclass(slots=True)
class Held:
    """What a model was made from."""

    asked: str
    """The name as it was given."""
    files: ModelFiles
    model: ModelConfig
    """Settings that load it again in the same way."""
    tokenizer: Any
    max_seq_length: int
    full_finetuning: bool = False
    checkpointing: bool | None = None
    """Whether activations shall be computed again in the backward pass; None leaves it to us."""
    num_new_tokens: int = 0
    """Tokens that were added to the vocabulary since."""


def hold(model: Any, held: Held) -> None:
    """Keep `held` with a model; adapters that are put around it later do not hide it."""
    setattr(plain_model(model), _HELD, held)


def held_of(model: Any) -> Held:
    """Return what `hold` kept. Raises TypeError for a model that FastLanguageModel did not make."""
    unwrap: Any = getattr(model, "get_base_model", None)
    found = getattr(unwrap() if unwrap is not None else model, _HELD, None)
    if not isinstance(found, Held):
        raise TypeError(
            f"a {type(model).__name__} is no model that FastLanguageModel.from_pretrained returned; "
            "load it with that, and pass the first of the two things that it returns"
        )
    return found
