"""Old names of TRL and transformers, translated where their classes are built; their sources stay as they are.

Nothing happens before `activate` is called, which importing one of the façade's names does. Classes that are imported
later are wrapped when they are; `deactivate` gives everything back.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from threading import RLock
from typing import TYPE_CHECKING, Any

from luthier.core.log import say_once
from luthier.facade.old_arguments import names_of, translate
from luthier.facade.old_table import ARGUMENTS, CLASSES, CONFIG_OF, CONFIGS, GONE, MOVED, TESTED, TRAINER_ARGUMENTS
from luthier.facade.old_trainers import after, before, move
from luthier.facade.old_values import fit, say_silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from luthier.facade.old_table import Table

_PACKAGES = ("trl", "trl.trainer")
_lock = RLock()
_undo: list[Callable[[], None]] = []


def activate() -> None:
    """Translate old names from now on, in classes that are there and in those that come; again changes nothing."""
    with _lock:
        if _undo:
            return
        watcher = _Watcher()
        sys.meta_path.insert(0, watcher)
        _undo.append(lambda: sys.meta_path.remove(watcher))
        for name in (*_PACKAGES, *CLASSES):
            if name in sys.modules:
                _mend(name)


def deactivate() -> None:
    """Give every class and module back as it was."""
    with _lock:
        while _undo:
            _undo.pop()()


def is_active() -> bool:
    """Tell whether old names are translated."""
    return bool(_undo)


# ---- reaching the classes


class _Watcher(MetaPathFinder):
    """Mends a module as soon as it was executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in CLASSES and fullname not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path)
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            with _lock:
                if _undo:
                    _mend(fullname)

        loader.exec_module = exec_module
        return spec


def _mend(name: str) -> None:
    module = sys.modules[name]
    if name in _PACKAGES:
        _add_moved(module)
        return
    cls = getattr(module, CLASSES[name], None)
    if cls is not None:
        wrap(cls)


def wrap(cls: Any) -> None:
    """Translate old arguments of one class of settings or of one trainer; `deactivate` undoes it."""
    original, kind = cls.__init__, cls.__name__
    is_own = "__init__" in vars(cls)
    make = _trainer_init if kind in CONFIG_OF else _config_init
    cls.__init__ = make(cls, original)

    def give_back() -> None:
        if is_own:
            cls.__init__ = original
        else:
            del cls.__init__

    _undo.append(give_back)


def _add_moved(module: ModuleType) -> None:
    """Make names that moved inside TRL importable from where they were, and say what became of those that are gone."""
    kind: Any = type(module)

    def find(self: Any, name: str) -> Any:
        try:
            return kind.__getattr__(self, name)
        except AttributeError:
            if name in GONE:
                raise ImportError(f"cannot import {name} from trl {version('trl')}: {GONE[name]}") from None
            if name not in MOVED:
                raise
        say_once(f"trl.{name} is now {MOVED[name]}.{name}")
        return getattr(import_module(MOVED[name]), name)

    module.__class__ = type(kind.__name__, (kind,), {"__getattr__": find})
    _undo.append(lambda: setattr(module, "__class__", kind))
    if module.__name__ == "trl" and not version("trl").startswith(f"{TESTED}."):
        say_once(f"trl {version('trl')}: old names are translated as for trl {TESTED}, the version that is tested")


# ---- arguments


def _defaults(cls: Any) -> dict[str, Any]:
    return {field.name: None if field.default is MISSING else field.default for field in fields(cls)}


def _config_init(cls: Any, original: Any) -> Any:
    """Return an __init__ of settings that takes old names, and values that this machine cannot have."""
    known, defaults = names_of(original), _defaults(cls)
    base = next((each.__name__ for each in cls.__mro__ if each.__name__ in CONFIGS), cls.__name__)
    table: Table = {**ARGUMENTS, **CONFIGS.get(base, {})}

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(known, args, strict=False)) | kwargs
        made, ours = translate(cls.__name__, given, known, table)
        sampling = {"vllm_sampling_params": ours.pop("vllm_sampling_params", None)}
        made = fit({**made, **sampling}, defaults)
        made |= _weighted(ours.pop("rpo_alpha", None))
        original(self, **made)
        self.__dict__["_luthier_given"] = frozenset(given) | frozenset(made)
        self.__dict__.update(ours)
        if hasattr(self, "max_length"):
            self.__dict__.setdefault("max_seq_length", self.max_length)
        if not cls.__module__.startswith("transformers."):
            say_silent(frozenset(given) | frozenset(made))

    return __init__


def _weighted(alpha: float | None) -> dict[str, Any]:
    """Return DPO's loss with that of the chosen answer added, arXiv:2404.19733."""
    return {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, float(alpha)]} if alpha else {}


def _trainer_init(cls: Any, original: Any) -> Any:
    """Return an __init__ of a trainer that takes old names, its own and those that are settings today."""
    known, kind = names_of(original), cls.__name__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.__dict__.get("_luthier_building"):  # the trainer below one that is translated already
            original(self, *args, **kwargs)
            return
        self.__dict__["_luthier_building"] = True
        try:
            given = dict(zip(known, args, strict=False)) | kwargs
            config = getattr(sys.modules[CONFIG_OF[kind][0]], CONFIG_OF[kind][1])
            mine, moved = move(kind, given, known, config)
            made, _ = translate(kind, mine, known, TRAINER_ARGUMENTS)
            before(self, kind, made, moved, config)
            original(self, **made)
            after(self, made)
        finally:
            del self.__dict__["_luthier_building"]

    return __init__
