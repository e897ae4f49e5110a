"""Types of values that settings share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from luthier.config.yaml_file import read_yaml
from luthier.core.errors import ConfigError
from luthier.core.log import printable


def split_commas(value: object) -> object:
    """Read "a, b" as a list."""
    if value is None:
        return []
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def bytes_of(value: object) -> object:
    """Read "6GB", "512 MiB" and the like."""
    if value is None or isinstance(value, int):
        return value
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]i?)B\s*", str(value), re.IGNORECASE)
    if found is None:
        raise ValueError("write a number with its unit, such as 6GB or 512MiB")
    unit = found[2].upper()
    return int(float(found[1]) * (1024 if unit.endswith("I") else 1000) ** (1 + "KMGT".index(unit[0])))


def described(value: object) -> object:
    """Read a YAML file of word: description, where one is named."""
    if not isinstance(value, str):
        return {} if value is None else value
    try:
        tree = read_yaml(Path(value).expanduser())
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if tree.problems:
        raise ValueError(tree.problems[0])
    wrong = next((word for word, text in tree.values.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"{value}: expected word: description, found {printable(tree.values[wrong])} for {wrong}")
    return tree.values


Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(split_commas)]
Descriptions = Annotated[dict[str, str], BeforeValidator(described)]
Positive = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, BeforeValidator(bytes_of), Field(ge=10**8)]
Share = Annotated[float, Field(ge=0, lt=1)]
