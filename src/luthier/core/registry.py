"""Shelves: things chosen by name. A new thing is a new file; nothing else changes.

A shelf imports the modules of its package at the first look-up, then the plug-ins of the entry-point group
of the same name. A dotted path `module.file:attribute` works wherever a name does.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Item = TypeVar("Item")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return a hint with the nearest known name, or an empty text.

    >>> did_you_mean("lroa", ["lora", "full"])
    "; did you mean 'lora'?"
    """
    near = get_close_matches(name, known, n=1, cutoff=0.55)
    return f"; did you mean {near[0]!r}?" if near else ""


class Registry(Generic[T]):
    """Names to things, filled by the modules of `package` on demand."""

    def __init__(self, what: str, package: str) -> None:
        self.what, self.package = what, package
        self._items: dict[str, T] = {}
        self._begun = self._discovered = False
        self._discovering = threading.RLock()

    def register(self, *names: str) -> Callable[[Item], Item]:
        """Decorate a class or function to put it on the shelf; several names may share it."""

        def keep(item: Item) -> Item:
            for name in names:
                self.add(name, item)  # pyright: ignore[reportArgumentType]  # the shelf's contract test checks it
            return item

        return keep

    def add(self, name: str, item: T) -> None:
        """Put `item` on the shelf under `name`; a name is given once."""
        if name in self._items and self._items[name] is not item:
            raise ValueError(f"{self.what} {name!r} is registered twice")
        self._items[name] = item

    def names(self) -> list[str]:
        """Return every name on the shelf, by module."""
        self._discover()
        return list(self._items)

    def items(self) -> list[tuple[str, T]]:
        """Return every (name, thing) pair."""
        self._discover()
        return list(self._items.items())

    def name_of(self, instance: object) -> str:
        """Return the name under which the class of `instance` is on the shelf."""
        kind: Any = type(instance)
        return next(name for name, cls in self.items() if cls is kind)

    def get(self, name: str) -> T:
        """Return the thing called `name`, or the attribute a dotted path names.

        Raises ConfigError with the nearest name when there is none.
        """
        if ":" in name:
            return self._from_path(name)
        self._discover()
        if name not in self._items:
            known = sorted(self._items)
            raise ConfigError(
                f"unknown {self.what} {name!r}{did_you_mean(name, known) or '.'} It may be one of: {', '.join(known)}",
                code="config_unknown_name",
            )
        return self._items[name]

    def _from_path(self, path: str) -> Any:
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.what} {path!r} cannot be imported: {error}") from error

    def _discover(self) -> None:
        if self._discovered:
            return
        with self._discovering:  # other threads wait for the whole shelf
            if self._begun:  # here already, further up: a module of the shelf looks something up
                return
            self._begun = True
            self._fill()
            self._discovered = True

    def _fill(self) -> None:
        package = importlib.import_module(self.package)
        modules = [f"{self.package}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
        for module in modules:
            importlib.import_module(module)
        place = {module: index for index, module in enumerate(modules)}  # whatever was imported before
        by_module = sorted(self._items.items(), key=lambda pair: place.get(getattr(pair[1], "__module__", ""), -1))
        self._items = dict(by_module)
        for plugin in entry_points(group=self.package):
            plugin.load()


FORMATS: Registry[Any] = Registry("data format", "luthier.data.formats")
PAIR_FORMATS: Registry[Any] = Registry("format of preference rows", "luthier.data.formats")
OBJECTIVES: Registry[Any] = Registry("objective", "luthier.objectives")
TUNINGS: Registry[Any] = Registry("tuning", "luthier.tuning")
FAMILIES: Registry[Any] = Registry("family", "luthier.families")
PROMPT_FORMATS: Registry[Any] = Registry("format of prompts", "luthier.data.formats")
REWARDS: Registry[Any] = Registry("reward", "luthier.rewards")
ENVIRONMENTS: Registry[Any] = Registry("environment", "luthier.environments")
ENGINES: Registry[Any] = Registry("engine", "luthier.engines")
