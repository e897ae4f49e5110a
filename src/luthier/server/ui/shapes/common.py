"""What every part of the interface uses."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from luthier.server.ui.said import Said


class Shape(BaseModel):
    """A reply; numbers are finite or null."""

    model_config = ConfigDict(ser_json_inf_nan="null", use_attribute_docstrings=True)


class Asked(BaseModel):
    """A request; a field that is not there is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Problem(Shape):
    """What is wrong, where, and what to do."""

    code: str
    """Stable name, such as config_unknown_key; see docs/ui.md."""
    message: Said
    """A sentence for a person, as the command line says it."""
    field: str | None = None
    """Setting as section.key, or field of the request, that it is about."""
    place: str | None = None
    """file:line, or part of the request."""


class Failure(Shape):
    """The shape of every reply whose status is 400 or more."""

    error: Problem
    problems: list[Problem] = []
    """All mistakes, where there are several; the first one is `error`."""


class Ok(Shape):
    """Done; there is nothing to tell."""

    ok: bool = True


class About(Shape):
    """This server, and who asks."""

    authenticated: bool
    version: str | None = None
    """Of luthier; only for those who are let in, like all that follows."""
    runs_root: str | None = None
    data_roots: list[str] = []
    model_roots: list[str] = []
    started: float | None = None
    """Seconds since the epoch; another value means that the server was started anew."""
    max_upload_bytes: int = 0
    remote_code: bool = False
    """Whether the command line allowed code that models bring."""


class SignIn(Asked):
    """A token, from the printed link or typed."""

    token: str


class Token(Shape):
    """A fresh token; shown this once."""

    token: str


class Check(Shape):
    """One line of the doctor."""

    level: Literal["good", "note", "fault"]
    what: Said
    found: Said
    remedy: Said = ""


class Doctor(Shape):
    """What this machine has."""

    checks: list[Check]
    packages: dict[str, str]
    """Package -> version."""
    licences: dict[str, str]
    """Package -> licence, of what the page and the server contain."""


class Machine(Shape):
    """What is used now."""

    memory_total: int
    memory_available: int
    """Bytes."""
    disk_total: int
    disk_free: int
    """Bytes, where runs are kept."""
    processors: int
    load: float
    """Share of the processors in use, 0 to 1."""
    devices: list[str] = []


Values = dict[str, dict[str, Any]]
"""Settings in the nested form: section -> key -> value; tuning and objective have their name under "name"."""
