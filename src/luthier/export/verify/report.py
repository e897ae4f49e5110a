"""What a verification found: one record a check, and all of them as a table and as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from luthier.core.errors import DependencyError
from luthier.core.log import first_line
from luthier.core.progress import one_part


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    """Stable name, such as "tokenizer"."""
    passed: bool | None
    """None when it was not done; `found` says why."""
    found: str
    """What is there, in words: of a failed check the fault, of one that was not done the reason."""
    limit: str
    """What it was held against."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What was measured, by name."""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one file or folder, in the order they were done."""

    subject: str
    """Name of what was verified; no path."""
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """Whether a check failed. One that was not done is no failure; the table says that it was not done."""
        return any(check.passed is False for check in self.checks)

    @property
    def not_done(self) -> tuple[Check, ...]:
        """Checks that could not be made."""
        return tuple(check for check in self.checks if check.passed is None)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return (result, name, found, limit) of every check."""
        return [(_RESULTS[check.passed], check.name, check.found, check.limit) for check in self.checks]

    def as_dict(self) -> dict[str, object]:
        """Return what goes into verify.json; numbers that JSON has not (infinity) are null."""
        return {
            "subject": self.subject,
            "failed": self.failed,
            "checks": [
                {
                    "name": check.name,
                    "result": _RESULTS[check.passed],
                    "found": check.found,
                    "limit": check.limit,
                    "numbers": {k: v if math.isfinite(v) else None for k, v in check.numbers.items()},
                }
                for check in self.checks
            ],
        }


def not_done(name: str, reason: str, limit: str = "") -> Check:
    """Return the check `name` as one that was not made, and why."""
    return Check(name, None, f"not done: {reason}", limit)


def guarded(name: str, limit: str, check: Callable[[], Check]) -> Check:
    """Make a check; a missing package or too little memory makes it "not done"; what else breaks it is its failure."""
    try:
        with one_part():
            return check()
    except (DependencyError, MemoryError) as error:
        return not_done(name, str(error), limit)
    except Exception as error:  # noqa: BLE001  a damaged file may break any library in any way
        return Check(name, False, f"broke off with {type(error).__name__}: {first_line(error)}", limit)


_RESULTS = {True: "ok", False: "failed", None: "not done"}
