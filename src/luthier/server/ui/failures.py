"""What is said to whoever asks for something that cannot be done: one shape, never longer than a screen."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from luthier.core.errors import ConfigError, LuthierError
from luthier.core.log import first_line, printable
from luthier.server.errors import spelled
from luthier.server.ui.said import said
from luthier.server.ui.shapes.common import Failure, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi.exceptions import RequestValidationError

MOST_CHARACTERS = 1000
"""A message is cut behind so many; a reply stays below 4 KB."""
MOST_PROBLEMS = 20
_REPLY_BYTES = 4000
_STATUS_OF_CODE = {
    "run_missing": 404,
    "run_locked": 409,
    "run_exists": 409,
    "job_missing": 404,
    "job_conflict": 409,
    "job_state": 409,
    "job_tries": 409,
    "queue_busy": 503,
    "disk_full": 507,
}
"""Code of an error -> status of the reply, where the request alone is not to blame."""


class Refused(LuthierError):
    """A reply that is no success.

    `code` is a stable name, `field` the part of the request and `place` the file and line that it is about.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        place: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status, self.field, self.place = status, field, place
        self.headers = dict(headers or {})


def leaves_unread(error: Exception) -> bool:
    """Tell whether the body of a request was not read to its end, so that its connection carries no other one."""
    return isinstance(error, Refused) and error.status in (408, 413)


class Mistaken(ConfigError):
    """Settings that cannot be used, with each mistake by itself."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(each.message for each in problems), code=problems[0].code)
        self.problems = problems


def missing(what: str, name: object) -> Refused:
    """Return the reply to a question about something that is not there."""
    return Refused(404, f"{what.replace(' ', '_')}_missing", f"there is no {what} called {printable(name)} here")


def reply(status: int, problems: Sequence[Problem], headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return problems, the first one foremost, in the language of the request; the body has less than 4 KB."""
    shown = [
        each.model_copy(
            update={
                "message": _short(said(each.message), MOST_CHARACTERS),
                "field": _short(each.field, 200),
                "place": _short(each.place, 200),
            }
        )
        for each in problems[:MOST_PROBLEMS]
    ]
    while True:
        response = JSONResponse(Failure(error=shown[0], problems=shown).model_dump(), status, dict(headers or {}))
        if len(response.body) < _REPLY_BYTES or len(shown) == 1:
            return response
        shown.pop()


def of_error(error: Exception) -> JSONResponse:
    """Return the reply to a mistake of the one who asks, or to a condition of the machine."""
    if isinstance(error, Refused):
        problem = Problem(code=error.code, message=str(error), field=error.field, place=error.place)
        return reply(error.status, [problem], error.headers)
    if isinstance(error, Mistaken):
        return reply(422, error.problems)
    code = error.code if isinstance(error, LuthierError) else "failed"
    return reply(_STATUS_OF_CODE.get(code, 422), [Problem(code=code, message=str(error) or first_line(error))])


def of_system(error: OSError) -> Refused:
    """Return the reply where the machine, or somebody at its files, came in between."""
    status, code, what = _STATUS_OF_NUMBER.get(error.errno or 0, (500, "system", "the system refused it"))
    return Refused(status, code, f"{what}: {error.strerror or type(error).__name__}")


_FULL = (507, "disk_full", "nothing more can be written; free some space")
_STATUS_OF_NUMBER = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.ENOENT: (404, "file_missing", "a file or folder is gone"),
    errno.ENOTDIR: (404, "file_missing", "a folder is gone"),
    errno.ENAMETOOLONG: (404, "file_missing", "no file has so long a name"),
    errno.ELOOP: (403, "file_denied", "links lead in a circle"),
    errno.EACCES: (403, "file_denied", "this server may not do that to the file"),
    errno.EROFS: (403, "file_denied", "the disk can only be read"),
}


def of_validation(error: RequestValidationError) -> JSONResponse:
    """Return the reply to a request whose fields are not as they are declared; what was sent is not repeated."""
    found = list(error.errors())
    if any(each["type"] == "json_invalid" for each in found):
        return reply(400, [Problem(code="request_no_json", message="the body is not JSON")])
    problems = [
        Problem(code="request_field", message=f"{name or 'the body'}: {_lower(each['msg'])}", field=name or None)
        for each in found
        for name in [spelled(each["loc"][1:])]
    ]
    return reply(422, problems)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(text: str | None, limit: int) -> str | None:
    return text if text is None or len(text) <= limit else text[: limit - 3] + "..."
