"""Fine-tune, align, evaluate, export and serve open language models: every token once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from luthier.api import run
    from luthier.config.load import load_config
    from luthier.facade.classes import (
        FastLanguageModel,
        FastModel,
        FastSentenceTransformer,
        FastTextModel,
        FastVisionModel,
        is_bf16_supported,
        is_bfloat16_supported,
    )
    from luthier.facade.fast import SamplingParams

_OF_SCRIPTS = {
    "luthier.facade.classes": (
        "DEVICE_TYPE", "FastLanguageModel", "FastLlamaModel", "FastMistralModel", "FastModel", "FastQwen2Model",
        "FastQwen3Model", "FastSentenceTransformer", "FastTextModel", "FastVisionModel", "UnslothVisionDataCollator",
        "is_bf16_supported", "is_bfloat16_supported",
    ),
    "luthier.facade.fast": ("SamplingParams",),
    "luthier.facade.trainers": (
        "PatchDPOTrainer", "PatchFastRL", "PatchKTOTrainer", "UnslothTrainer", "UnslothTrainingArguments",
        "unsloth_train",
    ),
    "luthier.facade.like": ("train_like",),
    "luthier.chat_templates": (
        "add_new_tokens", "apply_chat_template", "get_chat_template", "standardize_data_formats",
        "standardize_sharegpt", "to_sharegpt", "train_on_responses_only",
    ),
}  # fmt: skip
"""Module -> names that scripts for other libraries import from the top."""
_LAZY = {"run": "luthier.api", "load_config": "luthier.config.load"} | {
    name: module for module, names in _OF_SCRIPTS.items() for name in names
}
__all__ = [  # noqa: RUF022  ours first
    "__version__",
    "load_config",
    "run",
    "FastLanguageModel",
    "FastModel",
    "FastSentenceTransformer",
    "FastTextModel",
    "FastVisionModel",
    "SamplingParams",
    "is_bf16_supported",
    "is_bfloat16_supported",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    if _LAZY[name] in _OF_SCRIPTS:
        import_module("luthier.core.log").setup()  # before libraries that are loud are imported
        import_module("luthier.facade.old_names").activate()
    return getattr(import_module(_LAZY[name]), name)
