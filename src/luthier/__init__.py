"""Fine-tune, align, evaluate, export and serve open language models: every token once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from luthier.api import run
    from luthier.config.load import load_config

_LAZY = {"run": "luthier.api", "load_config": "luthier.config.load"}
__all__ = ["__version__", "load_config", "run"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")
