"""The description of the interface: every shape, whether a path returns it already or not."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from luthier.server.ui import shapes
from luthier.server.ui.shapes.common import Asked


def document() -> dict[str, Any]:
    """Return an OpenAPI document whose components are all shapes."""
    found: list[tuple[type[BaseModel], Any]] = []
    for each in iter_modules(shapes.__path__):
        module = import_module(f"{shapes.__name__}.{each.name}")
        found += [
            (cls, "validation" if issubclass(cls, Asked) else "serialization")
            for cls in vars(module).values()
            if isinstance(cls, type) and issubclass(cls, BaseModel) and cls.__module__ == module.__name__
        ]
    _, schema = models_json_schema(found, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "luthier ui", "version": "1"},
        "paths": {},
        "components": {"schemas": dict(sorted(schema["$defs"].items()))},
    }
