"""Arguments under old names -> arguments under today's."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DependencyError
from luthier.core.log import say_once
from luthier.core.registry import did_you_mean
from luthier.facade.old_table import TESTED, Entry, Ours, Table, To, Unless, Without

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def names_of(init: Any) -> list[str]:
    """Return the arguments that an __init__ takes today."""
    return [name for name in inspect.signature(init).parameters if name != "self"]


def translate(
    owner: str, values: Mapping[str, Any], known: Sequence[str], table: Table
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments under today's names, and those that the façade itself obeys.

    Raises TypeError, naming the nearest, for a name that nobody knows or a value that nothing does any more.
    """
    made = {name: value for name, value in values.items() if name in known}
    ours: dict[str, Any] = {}
    for name, value in values.items():
        if name in known:
            continue
        entry = table.get(name)
        if entry is None:
            near = did_you_mean(name, [*known, *table])
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}{near}")
        if isinstance(entry, To):
            _rename(owner, name, value, entry, made, known)
        elif isinstance(entry, Ours):
            ours[name] = value
        else:
            _leave_out(owner, name, value, entry)
    return made, ours


def _rename(owner: str, name: str, value: Any, entry: To, made: dict[str, Any], known: Sequence[str]) -> None:
    if entry.name not in known:
        raise DependencyError(
            f"{owner}: trl {version('trl')} has neither {name} nor {entry.name}; run: pip install 'trl=={TESTED}.*'"
        )
    if entry.values is not None:
        if value not in entry.values:
            return
        value = entry.values[value]
    if made.get(entry.name):
        say_once(f"{owner}: {name} is left out, because {entry.name} is given, too")
        return
    made[entry.name] = value
    say_once(f"{owner}: {name} is now {entry.name}")


def _leave_out(owner: str, name: str, value: Any, entry: Entry) -> None:
    if isinstance(entry, Unless) and value not in entry.harmless:
        raise TypeError(f"{owner}: {name}={value!r} does nothing any more: {entry.why}")
    assert isinstance(entry, Unless | Without)
    say_once(f"{owner}: {name} is left out: {entry.why}")
