"""Questions to the index, as SQL with every value apart from it."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from luthier.core.errors import RunError
from luthier.core.log import printable
from luthier.core.registry import did_you_mean
from luthier.runs.facts import spelled

SORTABLE = (
    "created", "updated", "name", "state", "objective", "tuning", "model", "step", "loss", "best", "seconds", "bytes",
)  # fmt: skip
_LEAST_SECONDS = 1e8
"""In 1973; smaller numbers are meant to be something else."""
_TERM = re.compile(r'(?:([\w./-]+):)?(?:"([^"]*)"?|(\S+))')
_OWN = {"tag": "tags", "state": "state", "objective": "objective", "stage": "objective", "tuning": "tuning",
        "finetuning_type": "tuning"}  # fmt: skip
"""Key of a term -> the column that holds it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: all parts must hold; of several states, objectives, models or tags any one."""

    text: str = ""
    states: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    """When it was created, as `moment_of` reads it; a day at the end is in it."""
    archived: bool | None = False
    sort: str = "created"
    descending: bool = True


def where(asked: Asked) -> tuple[str, list[Any], str]:
    """Return condition, values and order. Raises RunError for a column that cannot be sorted by, or what is no date."""
    if asked.sort not in SORTABLE:
        raise RunError(
            f"sort: no column {printable(asked.sort)}{did_you_mean(asked.sort, [*SORTABLE])}", code="run_sort"
        )
    parts: list[str] = ["1"]
    values: list[Any] = []
    for column, names in (("state", asked.states), ("objective", asked.objectives), ("model", asked.models)):
        if names:
            parts.append(f"{column} IN ({', '.join('?' * len(names))})")
            values += names
    if asked.tags:
        parts.append(f"EXISTS (SELECT 1 FROM json_each(runs.tags) WHERE value IN ({', '.join('?' * len(asked.tags))}))")
        values += asked.tags
    for field, given, comparison in (("since", asked.since, ">="), ("until", asked.until, "<")):
        if given:
            parts.append(f"created {comparison} ?")
            values.append(moment_of(given, field, end=field == "until"))
    if asked.archived is not None:
        parts.append("archived = ?")
        values.append(int(asked.archived))
    for key, quoted, bare in _TERM.findall(asked.text):
        part, more = _term(key.casefold(), (quoted or bare).casefold())
        parts.append(part)
        values += more
    direction = "DESC" if asked.descending else "ASC"
    collate = " COLLATE NOCASE" if asked.sort in ("name", "model") else ""
    return " AND ".join(parts), values, f"pinned DESC, {asked.sort}{collate} {direction} NULLS LAST, id {direction}"


def moment_of(given: str, field: str, *, end: bool = False) -> float:
    """Return a moment in seconds since the epoch, given as that or as an ISO date, with a time or without.

    Times without a zone are of this machine. With `end` a day is its end, the midnight behind it. Raises RunError, with
    the name of the field, for anything else.
    """
    try:
        return _seconds(given.strip(), end=end)
    except (ValueError, OverflowError, OSError) as error:
        said = f"{field}: {printable(given)} is no date; write 2026-03-31, 2026-03-31T14:00 or seconds since 1970"
        raise RunError(said, code="run_date") from error


def _seconds(given: str, *, end: bool) -> float:
    with suppress(ValueError):  # before numbers: 20260331 is a day
        day = date.fromisoformat(given)
        midnight = datetime.combine(day + timedelta(days=end), datetime.min.time())
        return midnight.astimezone().timestamp()
    try:
        seconds = float(given)
    except ValueError:
        return datetime.fromisoformat(given).astimezone().timestamp()
    # A year alone is a number, too.
    if not math.isfinite(seconds) or seconds < _LEAST_SECONDS:
        raise ValueError(given)
    return seconds


def _term(key: str, value: str) -> tuple[str, list[Any]]:
    if not key:
        return "instr(words, ?)", [value]
    if key in _OWN:
        column = _OWN[key]
        if column == "tags":
            return "EXISTS (SELECT 1 FROM json_each(runs.tags) WHERE lower(value) = ?)", [value]
        return f"lower({column}) = ?", [value]
    setting = f"{key}:{spelled(value)}\n"
    if "." in key:
        return "instr(settings, ?)", [f"\n{setting}"]
    # lora_rank is the rank of a LoRA; a name with a colon in it may be meant as well.
    own = "instr(?, lower(tuning) || '_') = 1 AND instr(settings, '.' || substr(?, length(tuning) + 2))"
    return f"(instr(settings, ?) OR ({own}) OR instr(words, ?))", [f".{setting}", key, setting, f"{key}:{value}"]
