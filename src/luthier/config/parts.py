"""Things that settings name with settings of their own: from a shelf, or from a module or file of the user's."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from luthier.config.load import adapter
from luthier.config.mistakes import REASONS, within
from luthier.core.errors import ConfigError
from luthier.core.log import first_line, printable
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from luthier.config.rollout import NamedPart
    from luthier.core.registry import Registry


@dataclass(frozen=True, slots=True)
class Source:
    """Where something of the user's own stands; can be sent to another process."""

    module: str
    """Name of a module, or the whole path of a file."""
    attribute: str
    search: tuple[str, ...]
    """Folders that modules are looked for in, behind those of Python."""

    @property
    def is_file(self) -> bool:
        """Tell whether it is a file instead of an importable module."""
        return self.module.endswith(".py")

    def __str__(self) -> str:
        return f"{Path(self.module).name if self.is_file else self.module}:{self.attribute}"


def build_part(shelf: Registry[Any], part: NamedPart, folder: Path | None = None) -> Any:
    """Return what `part` names: an instance from the shelf, or whatever a path of the user's own leads to.

    A class is called with the settings. Raises ConfigError that lists everything wrong with them.
    """
    what = f"{shelf.what} {part.name}"
    if is_own(part.name):
        return make(load(find_source(part.name, what, folder), what), part.settings, what)
    return make(shelf.get(part.name), part.settings, what)


def is_own(name: str) -> bool:
    """Tell whether `name` leads to code of the user's."""
    return ":" in name


def find_source(name: str, what: str, folder: Path | None) -> Source:
    """Return where module:attribute or FILE.py:attribute leads, from here or else from `folder`."""
    module, _, attribute = name.rpartition(":")
    if not module or not attribute.isidentifier():
        raise ConfigError(f"{what}: write module:function or path/to/file.py:function")
    folders = [Path.cwd(), *([folder.absolute()] if folder is not None else [])]
    if not module.endswith(".py"):
        return Source(module, attribute, tuple(map(str, folders)))
    tried = [(each / Path(module).expanduser()).resolve() for each in folders]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{what}: there is no file {' or '.join(dict.fromkeys(map(str, tried)))}")
    return Source(str(found), attribute, (str(found.parent), *map(str, folders)))


def load(source: Source, what: str) -> Any:
    """Import the module or file and return the attribute. Raises ConfigError."""
    sys.path += [each for each in source.search if each not in sys.path]
    try:
        module = _load_file(source.module) if source.is_file else importlib.import_module(source.module)
    except (Exception, SystemExit) as error:
        place = error_place(error, source.module)
        reason = f"{type(error).__name__}: {first_line(Exception(str(error)))}"
        raise ConfigError(f"{what}: cannot import {source.module}{place}: {reason}") from error
    if not hasattr(module, source.attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        hint = did_you_mean(source.attribute, known) or f"; it has: {', '.join(known) or 'nothing'}"
        raise ConfigError(f"{what}: {source.module} has no {source.attribute!r}{hint}")
    return getattr(module, source.attribute)


def error_place(error: BaseException, module: str) -> str:
    """Return ", line 3" of the file that was imported, or ", FILE.py, line 3" of one that it imports, if any raised."""
    places = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    if not places:
        return ""
    file, line = places[-1]
    return f"{'' if file == module else f', {Path(file).name}'}, line {line}"


def _load_file(path: str) -> ModuleType:
    name = f"luthier_own_{hashlib.sha256(path.encode()).hexdigest()[:12]}_{Path(path).stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def make(thing: Any, settings: Mapping[str, Any], what: str) -> Any:
    """Return an instance of a class with these settings, or the thing itself, which then has none."""
    if not inspect.isclass(thing):
        if settings:
            raise ConfigError(f"{what} takes no settings, but {', '.join(map(printable, settings))} is given")
        return thing
    if not is_dataclass(thing):
        try:
            return thing(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{what}: {first_line(error)}") from error
    try:
        return adapter(thing).validate_python(dict(settings))
    except ValidationError as error:
        known = [each.name for each in fields(thing) if each.init]
        raise ConfigError("\n".join(f"{what}: {_explain(dict(each), known)}" for each in error.errors())) from error


def _explain(problem: dict[str, Any], known: list[str]) -> str:
    """Turn one pydantic error into setting, value, reason and remedy."""
    key, found = ".".join(map(str, problem["loc"])), problem.get("input")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        hint = did_you_mean(key, known) or f"; it has: {', '.join(known) or 'no settings'}"
        return f"unknown setting {printable(key)} (value {printable(found)}){hint}"
    if problem["type"] == "missing":
        return f"{key} is required"
    if not key:
        return problem["msg"].removeprefix("Value error, ")
    reason = REASONS.get(problem["type"], within(problem["msg"]))
    kind = {str: "text ", bool: "the truth value ", list: "the list "}.get(type(found), "")
    return f"{key}: {reason}, found {kind}{printable(found)}"
