"""Results as one table: a line for each number and model, with its interval and its difference. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEADER = ("", "model", "value", "95 %", "difference", "95 %", "rows")


def rows(models: Sequence[Mapping[str, Any]], *, details: bool) -> list[tuple[str, ...]]:
    """Return the lines of the table from what results.json holds of each model."""
    names = dict.fromkeys(name for model in models for name in model["measures"])
    lines: list[tuple[str, ...]] = []
    for name in names:
        having = [model for model in models if name in model["measures"]]
        if not details and any(model["measures"][name].get("detail") for model in having):
            continue
        for number, model in enumerate(having):
            lines.append((name if number == 0 else "", *_line(model, name)))
    return lines


def _line(model: Mapping[str, Any], name: str) -> tuple[str, ...]:
    measure, difference = model["measures"][name], model["differences"].get(name)
    shown = (
        ("", "") if difference is None else (_number(difference["value"], signed=True), _range(difference, signed=True))
    )
    return str(model["model"]), _number(measure["value"]), _range(measure), *shown, str(measure["rows"])


def _range(measure: Mapping[str, Any], *, signed: bool = False) -> str:
    interval = measure["interval"]
    return "-" if interval is None else " to ".join(_number(each, signed=signed) for each in interval)


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{'+' if signed else ''}.{digits}f}"
