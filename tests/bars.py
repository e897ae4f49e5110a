"""What a piece of work tells of how far it is."""

import pytest

from luthier.core import progress


def listen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Return a list that grows by (share done, what is done) whenever something is told, however often that is."""
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(progress, "_write", lambda done, total, doing, last: told.append((done / total, doing)))
    return told


def shares(told: list[tuple[float, str]], doing: str) -> list[float]:
    """Return the different shares while something was done, in their order."""
    return list(dict.fromkeys(share for share, what in told if what == doing))
