"""Puts the methods that scripts call into an instance of a transformers or peft model. No class is touched."""

from __future__ import annotations

import types
from importlib import import_module
from typing import Any

_TABLES = ("modes", "generation", "saving")
"""Modules of this package with a table METHODS: name of a method -> function whose first argument is the model."""


def attach(model: Any) -> None:
    """Bind every method to `model`. peft's models hand unknown names down, so they need methods of their own."""
    for table in _TABLES:
        for name, function in import_module(f"luthier.facade.{table}").METHODS.items():
            setattr(model, name, types.MethodType(function, model))
