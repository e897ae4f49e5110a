"""One logger for all, quiet on other ranks, and each notice said once."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("luthier")
_said: set[str] = set()


def setup(level: str = "INFO") -> None:
    """Send messages to standard error, so that standard output stays readable by scripts."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level if is_main_process() else "ERROR")


def is_main_process() -> bool:
    """Tell whether this process speaks for all ranks."""
    return os.environ.get("RANK", "0") == "0"


def say_once(message: str) -> None:
    """Log `message` at its first occurrence in this process."""
    if message not in _said:
        _said.add(message)
        logger.info(message)


def printable(text: object, limit: int = 80) -> str:
    """Quote a foreign value for a message: cut, with control and bidirectional characters escaped.

    >>> printable("a\\x1b[31m")
    "'a\\\\x1b[31m'"
    """
    shown = str(text)
    shown = shown if len(shown) <= limit else shown[: limit - 3] + "..."
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return f"'{safe}'"
