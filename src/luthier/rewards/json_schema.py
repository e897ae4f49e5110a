"""Is the answer JSON, and of the right form?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from luthier.core.errors import ConfigError, DataError
from luthier.core.log import first_line
from luthier.core.registry import REWARDS
from luthier.rewards.texts import column, last_block

if TYPE_CHECKING:
    from luthier.core.types import Answer

LONGEST = 1 << 20
"""Characters of an answer that are read as JSON."""


@REWARDS.register("json_schema")
@dataclass(frozen=True, kw_only=True, slots=True)
class JsonSchema:
    """1 where the answer is JSON that fits the schema; any JSON fits where there is none."""

    may_hang: ClassVar[bool] = True
    requires: ClassVar[dict[str, str]] = {"jsonschema": "rl"}
    schema: dict[str, Any] = field(default_factory=dict[str, Any])
    """The schema itself."""
    schema_file: str = ""
    """File with the schema, looked for from here and beside the settings file."""
    schema_column: str = ""
    """Column with a schema for each row, as an object or as text."""
    fenced: bool = True
    """Where the answer has ``` blocks, the last one is read instead of all of it; one marked json goes first."""
    any_json: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Reward of JSON that does not fit the schema."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.schema, self.schema_file, self.schema_column))) > 1:
            raise ValueError("json_schema takes one of schema, schema_file and schema_column")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what a row must have."""
        return (self.schema_column,) if self.schema_column else ()

    def resolved(self, folder: Path | None) -> JsonSchema:
        """Return the reward with the schema of its file. Raises ConfigError when a schema cannot be used."""
        if not self.schema_file:
            _check(self.schema, "reward json_schema: schema", ConfigError)
            return self
        paths = [Path(self.schema_file).expanduser(), *([folder / self.schema_file] if folder is not None else [])]
        path = next((each for each in paths if each.is_file()), None)
        if path is None:
            raise ConfigError(f"reward json_schema: there is no file {' or '.join(map(str, paths))}")
        try:
            schema = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"reward json_schema: {path} is no JSON: {first_line(error)}") from error
        _check(schema, f"reward json_schema: {path}", ConfigError)
        return replace(self, schema=schema, schema_file="")

    def __call__(self, answer: Answer) -> float | None:
        """Return 1.0, `any_json` or 0.0; None where the column with the schema is empty."""
        text, schema = answer.completion.text, self._schema(answer)
        if schema is None:
            return None
        block = last_block(text, ("json",)) if self.fenced else None
        body = text if block is None else block
        if len(body) > LONGEST:
            return 0.0
        try:
            value = json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if _fits(value, schema) else self.any_json

    def _schema(self, answer: Answer) -> Any:
        if not self.schema_column:
            return self.schema
        found = column(answer.example, self.schema_column)
        where = f"{answer.example.origin or 'a row'}: column {self.schema_column!r}"
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except ValueError as error:
                raise DataError(f"{where} is no JSON: {first_line(error)}", code="reward_column") from error
        if found is None:
            return None
        _check(found, where, DataError)
        return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _fits(value: object, schema: Any) -> bool:
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY

    try:
        # With a registry of its own a validator fetches nothing that a schema refers to.
        validator: Any = validator_for(schema)
        return validator(schema, registry=REGISTRY).is_valid(value)
    except (RecursionError, OverflowError):  # of numbers that no float holds
        return False


def _check(schema: Any, what: str, error_type: type[ConfigError] | type[DataError]) -> None:
    """Raise `error_type` when a schema is none. Without jsonschema, whose lack is told apart, nothing is checked."""
    if not isinstance(schema, (dict, bool)):
        raise error_type(f"{what} is no JSON schema, but {type(schema).__name__}")
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
    except ImportError:
        return
    try:
        validator: Any = validator_for(schema)
        validator.check_schema(schema)
    except SchemaError as error:
        raise error_type(f"{what} is no JSON schema: {error.message[:200]}") from error
