"""Errors in the shape that clients of OpenAI's API read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from luthier.core.log import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi.exceptions import RequestValidationError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
DO_NOT_RETRY = {"x-should-retry": "false"}
"""Obeyed by the official client, which otherwise asks three times."""


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every reply that is no success."""

    error: ErrorFacts


class ApiError(Exception):
    """A reply that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Return the error as JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the reply."""
        return JSONResponse(self.body, self.status, self.headers)


def bad(message: str, param: str | None, code: str | None = None) -> ApiError:
    """Return the reply to a request that cannot be honoured."""
    return ApiError(400, message, param=param, code=code)


def of_validation(error: RequestValidationError) -> ApiError:
    """Return the reply to a body that does not fit the declared fields."""
    found = list(error.errors())
    if any(each["type"] == "json_invalid" for each in found):
        reason = found[0].get("ctx", {}).get("error", "no JSON")
        place = found[0]["loc"][-1]
        return bad(f"the body is not JSON: {reason} at character {place}", None, "invalid_json")
    if isinstance(error.body, bytes):
        return bad("the body must be JSON, announced by the header Content-Type: application/json", None)
    chosen = max(found, key=lambda each: len(_path(each["loc"], error.body)))
    # Which of several kinds a value is, one of its fields says.
    kind = str(chosen.get("ctx", {}).get("discriminator", "")).strip("'")
    path = [*_path(chosen["loc"], error.body), *([kind] if kind else [])]
    name = spelled(path)
    refused = _REFUSED.get(str(path[-1])) if chosen["type"] != "missing" and path else None
    value = chosen.get("input")
    shown = "" if chosen["type"] == "missing" or isinstance(value, dict | list) else f", found {_short(value)}"
    return bad(refused or f"{name or 'the body'}: {chosen['msg'][:1].lower()}{chosen['msg'][1:]}{shown}", name or None)


_REFUSED = {
    "suffix": "suffix: text between a beginning and an end is not offered; leave it out",
    "best_of": "best_of: only 1 is offered; ask for n answers and choose among them",
    "audio": "audio is not offered; this server writes text",
    "modalities": 'modalities: only ["text"] is offered',
    "functions": "functions: the old name is not offered; send tools",
    "function_call": "function_call: the old name is not offered; send tool_choice",
    "prediction": "prediction is not offered; leave it out",
    "web_search_options": "web_search_options: this server searches nothing; leave it out",
    "store": "store: nothing is kept here; leave it out or send false",
    "dimensions": "dimensions: vectors have the model's own size; leave it out",
}
"""Fields of OpenAI's API that are known and not honoured."""


_DEEPEST = 12
"""Steps of a place that are spelled."""


def _short(value: object) -> str:
    try:
        return printable(json.dumps(value, ensure_ascii=False))[1:-1]
    except (TypeError, ValueError):
        return printable(value)


def _path(loc: Sequence[Any], body: Any) -> list[Any]:
    """Return the part of a place that is in the body: names of alternatives are no part of it."""
    path: list[Any] = []
    here = body
    for number, part in enumerate(loc[1:], 2):
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if inside and (isinstance(here, dict) or part < len(here)):
            here = here[part]
            path.append(part)
        elif number == len(loc) and isinstance(here, dict) and isinstance(part, str) and "[" not in part:
            path.append(part)
    return path


def spelled(path: Sequence[Any]) -> str:
    """Return a place as people write it.

    >>> spelled(["messages", 0, "content"])
    'messages[0].content'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[:_DEEPEST])
    return text.removeprefix(".")
