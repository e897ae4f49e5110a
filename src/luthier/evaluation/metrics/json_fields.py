"""Answers that are JSON, compared field by field with the expected object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.log import printable
from luthier.evaluation.measure import mean, measured, share
from luthier.evaluation.metric import METRICS
from luthier.evaluation.rows import expected_of
from luthier.rewards.texts import last_block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Example
    from luthier.evaluation.answers import Prediction
    from luthier.evaluation.measure import Measure

_NOTHING = object()


class JsonFields:
    """Does the answer parse, is it equal as a whole, and which share of the expected fields is equal."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise DataError naming the first row whose expected answer is no JSON object."""
        for example in examples:
            if not isinstance(parse(expected_of(example)), dict):
                raise DataError(
                    f"{example.origin} the metric json compares the fields of JSON objects, but the expected answer is "
                    f"{printable(expected_of(example), 60)}; take another metric, or the row out",
                    code="data_bad_row",
                )

    def __call__(self, predictions: Sequence[Prediction]) -> Sequence[Measure]:
        """Return generate/json_parses, _equal, _fields, and one share for each field that is expected anywhere."""
        ids = [p.origin for p in predictions]
        wanted: list[dict[str, Any]] = [parse(p.expected) for p in predictions]
        given = [parse(p.answer) for p in predictions]
        pairs = list(zip(wanted, given, strict=True))
        measures = [
            measured("generate/json_parses", share(ids, [each is not _NOTHING for each in given])),
            measured("generate/json_equal", share(ids, [_equal(want, got) for want, got in pairs])),
            measured("generate/json_fields", mean(ids, [_share_of_fields(want, got) for want, got in pairs])),
        ]
        for name in dict.fromkeys(key for want in wanted for key in want):
            rows = [i for i, want in enumerate(wanted) if name in want]
            holds = [_equal(wanted[i][name], _field(given[i], name)) for i in rows]
            series = share([ids[i] for i in rows], holds)
            measures.append(measured(f"generate/json_fields/{name}", series, is_detail=True))
        return measures


def parse(text: str | None) -> Any:
    """Return what the text says as JSON, a ``` block around it taken off; a mark of its own when it is no JSON."""
    if text is None:
        return _NOTHING
    block = last_block(text, ("json",))
    try:
        return json.loads(text if block is None else block, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NOTHING


def all_objects(examples: Sequence[Example]) -> bool:
    """Tell whether every expected answer is a JSON object."""
    return bool(examples) and all(isinstance(parse(expected_of(example)), dict) for example in examples)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _field(value: Any, name: str) -> Any:
    return value.get(name, _NOTHING) if isinstance(value, dict) else _NOTHING


def _equal(one: Any, other: Any) -> bool:
    """Tell whether two values are equal as JSON: true is not 1."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def _share_of_fields(want: dict[str, Any], got: Any) -> float:
    if not want:
        return float(_equal(want, got))
    return sum(_equal(value, _field(got, name)) for name, value in want.items()) / len(want)


METRICS.add("json", JsonFields())
