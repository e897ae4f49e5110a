"""Prove that a written model is the model that was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.export.verify.adapters import verify_adapter, verify_gguf_adapter
    from luthier.export.verify.alone import verify_file
    from luthier.export.verify.folders import verify_merged
    from luthier.export.verify.gguf_files import verify_gguf
    from luthier.export.verify.ollama import verify_ollama
    from luthier.export.verify.report import Check, Report

_LAZY = {
    "verify_adapter": "adapters", "verify_gguf_adapter": "adapters", "verify_file": "alone", "verify_merged": "folders",
    "verify_gguf": "gguf_files", "verify_ollama": "ollama", "Check": "report", "Report": "report",
}  # fmt: skip
"""Imported when they are used: the process of llama.cpp lives in this package and needs none of it."""
__all__ = [
    "Check",
    "Report",
    "verify_adapter",
    "verify_file",
    "verify_gguf",
    "verify_gguf_adapter",
    "verify_merged",
    "verify_ollama",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"luthier.export.verify.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
