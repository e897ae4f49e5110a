"""What several requests have in common: strict values, ways of drawing, and fields that are ignored by name."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from luthier.core.log import logger

_HALF = re.compile("[\ud800-\udfff]")
_UNFIT = re.compile(r"[^A-Za-z0-9_.\[\]-]")
MOST_NAMED = 12
"""Most unknown fields that a reply names."""


class Lenient(BaseModel):
    """Known fields are read strictly; unknown ones are ignored, and the reply names them."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


Unoffered = Annotated[None, Field(description="Not offered; null or left out.")]
Name = Annotated[str, Field(max_length=256)]
Objects = dict[str, JsonValue]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Bias = Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]], ...]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Body(Lenient):
    """The body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_surrogates(cls, data: Any) -> Any:
        """Refuse text that is no Unicode: half of a pair, as only escapes in JSON can bring in."""
        open_: list[tuple[str, Any]] = [("", data)]
        while open_:
            place, value = open_.pop()
            if isinstance(value, dict):
                open_ += [(f"{place}.{key}", inner) for key, inner in value.items()]
                open_ += [(place, key) for key in value]
            elif isinstance(value, list):
                open_ += [(f"{place}[{number}]", inner) for number, inner in enumerate(value)]
            elif isinstance(value, str) and _HALF.search(value):
                raise ValueError(f"{place[1:64]!a} has half of a surrogate pair, which is no text")
        return data


class StreamOptions(Lenient):
    """How a stream is sent."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage, whose choices are empty.")
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is obfuscated.")


class Drawn(Body):
    """How answers are drawn. What is left out is as the server was started with."""

    model: str = Field(min_length=1, max_length=256, description="One of /v1/models.")
    stream: bool | None = Field(None, description="Send the answer as it grows, as server-sent events.")
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the most probable token.")
    top_p: float | None = Field(None, ge=0, le=1, description="Draw from the smallest set of tokens with this share.")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="Draw from this many tokens; 0 from all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Leave out tokens below this share of the best one.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="Divides logits of tokens seen before.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Bias | None = Field(None, max_length=4096, description="Token id -> what is added to its logit.")
    n: int | None = Field(None, ge=1, le=128, description="Answers to one prompt.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="The same seed gives the same answer.")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    user: Name | None = Field(None, description="Requests of one user take turns with those of others.")


def unknown_fields(body: BaseModel, place: str = "") -> list[str]:
    """Return where `body` has fields that are not known."""
    found = [f"{place}{name}" for name in body.model_extra or {}]
    for name in type(body).model_fields:
        found += _inside(getattr(body, name), f"{place}{name}")
    return found


def _inside(value: Any, place: str) -> list[str]:
    if isinstance(value, BaseModel):
        return unknown_fields(value, f"{place}.")
    if isinstance(value, list):
        return [each for number, inner in enumerate(value) for each in _inside(inner, f"{place}[{number}]")]
    return []


def ignored_header(body: BaseModel) -> dict[str, str]:
    """Return the header that names what was ignored, if anything was."""
    found = unknown_fields(body)
    if not found:
        return {}
    logger.debug("ignored fields: %s", ", ".join(map(_plain, found[:MOST_NAMED])))
    rest = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    return {"x-ignored-fields": ", ".join([*(_plain(name) for name in found[:MOST_NAMED]), *rest])}


def _plain(name: str) -> str:
    """Return a name of any characters as a header may hold it.

    >>> _plain("top_a"), _plain("a, b\\n")
    ('top_a', 'a??b?')
    """
    return _UNFIT.sub("?", name)[:64] or "?"
