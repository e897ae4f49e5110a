"""Settings as files: the nested form with where each value came from, and one flat mapping in LLaMA-Factory's keys."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import compat
from luthier.config.load import SHELVES, adapter, dump
from luthier.config.schema import SECTIONS
from luthier.config.yaml_file import parse_scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.config.load import Loaded
    from luthier.config.schema import RunConfig

_PLAIN = re.compile(r"[A-Za-z0-9_./][\w./@+-]*")


def nested_yaml(loaded: Loaded, source: str) -> str:
    """Return `loaded` in the nested form: what was given or follows from it, each value with its place.

    What is left out stands at the end with its reason. `load_config` reads the same settings back.
    """
    lines = [f"# Made from {_one_line(source)} by `luthier convert`; what is not named has its default.", ""]
    for section, values in _given(loaded.config, loaded):
        lines.append(f"{section}:")
        written = {key: f"  {key}: {as_yaml(value)}" for key, value in values.items()}
        width = min(48, max(map(len, written.values())))
        lines += [f"{text:<{width}}  # {_origin(loaded, f'{section}.{key}')}" for key, text in written.items()]
        lines.append("")
    if loaded.notices:
        lines += ["# Left out:", *(f"#   {_one_line(notice)}" for notice in loaded.notices)]
    return "\n".join(lines).rstrip() + "\n"


def flat(config: RunConfig) -> dict[str, Any]:
    """Return what is not the default as one mapping in LLaMA-Factory's spelling; `load_config` reads it back."""
    there = {dotted: key for key, dotted in reversed(compat.RENAMED.items())}
    found: dict[str, Any] = {}
    for section, values in _given(config, None):
        for key, value in values.items():
            dotted = f"{section}.{key}"
            found[there.get(dotted, dotted) if section in SHELVES else key] = value
    return found


def flat_yaml(config: RunConfig) -> str:
    """Return `flat` as a file."""
    return "".join(f"{key}: {as_yaml(value)}\n" for key, value in flat(config).items())


def _given(config: RunConfig, loaded: Loaded | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the values of each section that were given, or that are not the default."""
    for section, values in dump(config).items():
        cls = SECTIONS.get(section) or type(getattr(config, section))
        usual = {**_defaults(cls), **({"name": SHELVES[section][1]} if section in SHELVES else {})}
        places = {} if loaded is None else loaded.places
        kept = {k: v for k, v in values.items() if f"{section}.{k}" in places or k not in usual or v != usual[k]}
        if section in SHELVES and kept:
            kept = {"name": values["name"], **kept}
        if kept:
            yield section, kept


def _defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a settings class, as `dump` writes them."""
    required = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
    instance = adapter(cls).validate_python(dict.fromkeys(required, ""))
    values: dict[str, Any] = adapter(cls).dump_python(instance, mode="json")
    return {key: value for key, value in values.items() if key not in required}


def _origin(loaded: Loaded, dotted: str) -> str:
    place = loaded.places.get(dotted)
    if place is None:
        return "follows from the others"
    where = f"{Path(place.source).name}:{place.line}" if place.line else place.source
    return _one_line(f"{where}, {place.key}" if place.key else where)


def as_yaml(value: Any) -> str:
    """Return a value in one line that YAML of any version reads as what it is.

    >>> as_yaml("runs/a"), as_yaml("1e-4"), as_yaml(["a", 2.5]), as_yaml(None)
    ('runs/a', '"1e-4"', '["a", 2.5]', 'null')
    """
    if isinstance(value, str) and _PLAIN.fullmatch(value) and _stays_text(value):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text)


def _stays_text(value: str) -> bool:
    import yaml

    return parse_scalar(value, "") == value and yaml.safe_load(value) == value


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
