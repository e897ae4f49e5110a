"""The description of the interface: every shape, and every path in one table."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from luthier.server.ui import shapes
from luthier.server.ui.shapes.common import Asked


def document() -> dict[str, Any]:
    """Return an OpenAPI document whose components are all shapes; of requests what may be left out is optional."""
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


def table() -> str:
    """Return the paths as a table in Markdown."""
    from luthier.server.ui.app import make_app
    from luthier.server.ui.run import Options, make_state

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = make_state(Options(runs=folder / "runs", token_file=folder / "token"))
        paths = make_app(state).openapi()["paths"]
    rows = [
        f"| {method.upper()} | `{path.removeprefix('/api')}` | {facts.get('summary', '')} |"
        for path, methods in paths.items()
        for method, facts in methods.items()
    ]
    return "\n".join(["| | path below /api | |", "|---|---|---|", *rows])
