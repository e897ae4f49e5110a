"""Adapters on disk: put one onto a base model, write one out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.log import first_line

if TYPE_CHECKING:
    from pathlib import Path

LEARNING = "default"
"""What the adapter that learns is called inside a model."""


def is_adapter(folder: Path) -> bool:
    """Tell whether `folder` holds an adapter and no whole model."""
    return (folder / "adapter_config.json").is_file()


def has_adapter(model: Any) -> bool:
    """Tell whether an adapter sits on `model`."""
    return hasattr(model, "peft_config")


def load_adapter(model: Any, adapter: Path, *, trainable: bool) -> Any:
    """Put an adapter folder onto the base model. Raises ModelError when the shapes differ."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"adapter {adapter} does not fit this base model: {first_line(error)}", code="model_adapter"
        ) from error


def save_trained(model: Any, folder: Path, base: str) -> None:
    """Write what was trained: the adapter that learns, naming `base` as others find it, or else the whole model."""
    if not has_adapter(model):
        model.save_pretrained(folder)
        return
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    # A second adapter may serve as the reference: only the one that learns is the result.
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[LEARNING])
