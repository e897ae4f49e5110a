"""YAML with line numbers, and without YAML 1.1's surprises.

`1e-4` is a number, a key stands once, tags are refused, `010` and `12:30` are refused instead of becoming 8 and 750.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from luthier.core.errors import ConfigError
from luthier.core.log import printable

LARGEST_FILE_BYTES = 1_000_000
MOST_NODES = 10_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was given."""

    source: str
    line: int | None = None
    key: str = ""
    """As the user spelt it; empty where it is the name of the setting."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(slots=True)
class Tree:
    """A parsed mapping and, for each dotted key, its place."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    places: dict[str, Place] = field(default_factory=dict[str, Place])
    problems: list[str] = field(default_factory=list[str])
    folder: Path | None = None
    """Where the file lies."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the number and boolean forms of YAML 1.2; anything else stays text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE|yes|Yes|no|No|on|On|off|Off", list("tTfFyYnNoO")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_SURPRISING = re.compile(r"^[-+]?(0[0-7]+|[0-9]+(:[0-5]?[0-9])+)$")


def parse_scalar(text: str, source: str) -> Any:
    """Read one command-line value as YAML would: numbers, booleans, lists in brackets, text."""
    if "\n" not in text and not text.startswith(("[", "{", '"', "'")):
        # A bare value may hold ": " or "#" without quotes, as a shell user expects.
        node = yaml.ScalarNode(_Loader("").resolve(yaml.ScalarNode, text, (True, False)), text)
        return _Loader("").construct_object(node) if not _SURPRISING.match(text) else text
    return parse_yaml(f"value: {text}", source).values["value"]


def read_yaml(path: Path) -> Tree:
    """Read a YAML file; raises ConfigError with the line when it is not one mapping."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        there = f"; there are: {', '.join(near[:8])}" if near else ""
        raise ConfigError(f"{path} does not exist{there}", code="config_missing_file")
    if not path.is_file():
        raise ConfigError(f"{path} is a folder or a device; expected a YAML file", code="config_missing_file")
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise ConfigError(
            f"{path} has {path.stat().st_size} bytes; a YAML of settings has at most {LARGEST_FILE_BYTES}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); convert it with iconv", code="config") from error
    tree = parse_yaml(_json_as_yaml(text) if path.suffix == ".json" else text, str(path))
    tree.folder = path.parent
    return tree


_PAIR_OF_ESCAPES = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def _json_as_yaml(text: str) -> str:
    """Return JSON without what YAML reads differently: tabs between values, and characters as pairs of escapes."""
    return _PAIR_OF_ESCAPES.sub(lambda pair: json.loads(f'"{pair[0]}"'), text.replace("\t", " "))


def parse_yaml(text: str, source: str) -> Tree:
    """Parse YAML text into values and places; problems inside are collected, not raised one by one."""
    try:
        nodes = list(yaml.compose_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{source}:{line}: not YAML: {error.problem}. A tab, or a missing blank after a colon?"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    if not nodes or nodes[0] is None:
        raise ConfigError(f"{source} is empty; `luthier init` writes a commented example")
    if len(nodes) > 1:
        raise ConfigError(f"{source} holds {len(nodes)} documents separated by ---; expected one")
    if not isinstance(nodes[0], yaml.MappingNode):
        raise ConfigError(f"{source}: expected `key: value` lines at the top, found a {nodes[0].id}")
    tree = Tree()
    tree.values = _Reader(source, tree).read(nodes[0], "")
    return tree


class _Reader:
    """Walks composed nodes once, with a limit, so that alias bombs end early."""

    def __init__(self, source: str, tree: Tree) -> None:
        self.source, self.tree, self.num_nodes = source, tree, 0
        self.construct = _Loader("")

    def read(self, node: yaml.Node, path: str) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MOST_NODES:
            raise ConfigError(f"{self.source}: more than {MOST_NODES} values once aliases are expanded")
        line = node.start_mark.line + 1
        if path:
            self.tree.places.setdefault(path, Place(self.source, line))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(child, f"{path}.{index}") for index, child in enumerate(node.value)]
        return self._scalar(node, path, line)

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            where = f"{path}.{key}" if path else key
            if key in values:
                first = self.tree.places[where]
                self.tree.problems.append(f"{self.source}:{line}: key {key!r} stands twice, first in line {first.line}")
                continue
            self.tree.places[where] = Place(self.source, line)
            values[key] = self.read(child, where)
        return values

    def _scalar(self, node: yaml.Node, path: str, line: int) -> Any:
        if node.tag not in _PLAIN_TAGS:
            self.tree.problems.append(
                f"{self.source}:{line}: tag {printable(node.tag)} is not allowed; nothing was run"
            )
            return None
        if getattr(node, "style", None) is None and _SURPRISING.match(str(node.value)):
            self.tree.problems.append(
                f"{self.source}:{line}: {path}: {node.value} means different numbers to different YAML readers; "
                "write the decimal number, or quote it"
            )
            return None
        try:
            return self.construct.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.tree.problems.append(f"{self.source}:{line}: {path}: {error}")
            return None
