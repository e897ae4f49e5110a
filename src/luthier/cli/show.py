"""What commands print: JSON for scripts, colours where a terminal wants them, help from the declarations."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SCHEMA = 1


def as_json(**values: Any) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps({"schema": SCHEMA, **values}, ensure_ascii=False, default=str))


def wants_colour() -> bool:
    """Tell whether standard output takes colours."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> None:
    """Print aligned columns."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *lines]) for i in range(len(header))]
    for line in [list(header), *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def tokens(pieces: Sequence[str], weights: Sequence[float]) -> str:
    """Return tokens with the learned ones marked: underlined green on a terminal, in brackets elsewhere."""
    before, after = ("\x1b[4;32m", "\x1b[0m") if wants_colour() else ("[", "]")
    dim = "\x1b[2m" if wants_colour() else ""
    out: list[str] = []
    for piece, weight in zip(pieces, weights, strict=True):
        safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in piece)
        marked = f"{before}{safe}{after}" if weight > 0 else f"{dim}{safe}{after if dim else ''}"
        # A learned line break must not drag the mark over the line's end.
        out.append(marked.replace(f"\n{after}", f"\\n{after}\n") if weight > 0 else marked)
    return "".join(out)


def settings_help(prefix: str = "") -> list[str]:
    """Return one line a setting, generated from the declarations: key, type, default, help."""
    from luthier.config.load import SHELVES, adapter
    from luthier.config.schema import SECTIONS

    lines: list[str] = []
    for section, cls in SECTIONS.items():
        lines += _section_help(section, adapter(cls).json_schema(), prefix)
    for section, (shelf, _) in SHELVES.items():
        for name, cls in shelf.items():
            lines += _section_help(section, adapter(cls).json_schema(), prefix, f"{section}.name={name}")
    return lines


def _section_help(section: str, schema: Mapping[str, Any], prefix: str, title: str = "") -> list[str]:
    about = str(schema.get("description", "")).partition("\n")[0]
    heading = f"\n{title or section}: {about}"
    lines = []
    for key, facts in schema.get("properties", {}).items():
        dotted = f"{section}.{key}"
        if dotted.startswith(prefix) or key == prefix or section == prefix or title.endswith(f"={prefix}"):
            default = "required" if key in schema.get("required", ()) else json.dumps(facts.get("default", {}))
            lines.append(f"  {key} ({kind_of(facts)}; {default})\n      {facts.get('description', '')}")
    wanted_shelf = bool(title) and (not prefix or title.endswith(f"={prefix}"))
    return [heading, *lines] if lines or wanted_shelf else []


def kind_of(facts: Mapping[str, Any]) -> str:
    """Return the type and limits of a JSON schema in words."""
    if "enum" in facts:
        return " | ".join(map(str, facts["enum"]))
    if "anyOf" in facts:
        return " or ".join(kind_of(each) for each in facts["anyOf"])
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
             "array": "list", "object": "mapping", "null": "none"}  # fmt: skip
    limits = [f"{sign} {facts[key]}" for key, sign in _LIMITS.items() if key in facts]
    return " ".join([names.get(str(facts.get("type")), str(facts.get("type"))), *limits])


_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
