"""What is said about a setting that cannot be read: where, key, value, reason and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.config.yaml_file import Place
from luthier.core.log import printable
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

REASONS = {
    "missing": "is required",
    "bool_parsing": "expected true or false",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected `key: value` lines",
}


def explain(
    section: str, key: str, problem: dict[str, Any], known: list[str], places: dict[str, Place], elsewhere: list[str]
) -> str:
    """Turn one pydantic error into where, key, value, reason and remedy.

    `known`: the keys of the section, `elsewhere`: those of all, for the nearest one.
    """
    dotted, found = f"{section}.{key}", problem.get("input")
    where = places.get(dotted, Place("given")) if problem["type"] != "missing" else Place("settings")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        hint = did_you_mean(key, [*known, *elsewhere]) or f"; {section} has: {', '.join(known) or 'no settings'}"
        return f"{where}: unknown key {printable(dotted)} (value {printable(found)}){hint}"
    if problem["type"] == "missing":
        return f"{where}: {key} is required; give it in the file or as {key}=..."
    reason = REASONS.get(problem["type"], within(problem["msg"]))
    if not key:  # settings of one section that contradict each other
        return f"{section}: {reason}"
    kind = {str: "text ", bool: "the truth value ", list: "the list "}.get(type(found), "")
    hint = "; quote it if it is a name" if isinstance(found, bool) and problem["type"] == "string_type" else ""
    return f"{where}: {where.key or key}: {reason}, found {kind}{printable(found)}{hint}"


def within(message: str) -> str:
    """Return what pydantic says, as a part of a sentence.

    >>> within("Value error, GaLore here works on AdamW"), within("Input should be a list")
    ('GaLore here works on AdamW', 'input should be a list')
    """
    own = message.removeprefix("Value error, ")
    return own if own != message else message[:1].lower() + message[1:]


def code_of(problems: Sequence[str]) -> str:
    """Return the stable name of what is wrong."""
    return "config_unknown_key" if all("unknown key" in problem for problem in problems) else "config"
