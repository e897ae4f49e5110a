"""One logger for all, quiet on other ranks, and each notice said once."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

logger = logging.getLogger("luthier")
_said: set[str] = set()


class _Memory(logging.Handler):
    """Keeps early messages, so that log.txt begins before there is a run directory."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_early = _Memory()


def setup(level: str = "INFO") -> None:
    """Send messages to standard error, so that standard output stays readable by scripts; quiet other libraries."""
    if _early not in logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.setLevel(level if is_main_process() else "ERROR")
        logger.addHandler(handler)
        logger.addHandler(_early)
    logger.propagate = False
    logger.setLevel("DEBUG")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # It announces optional kernels that it does not find, whoever imports it.
    logging.getLogger("bitsandbytes").setLevel("CRITICAL")
    warnings.filterwarnings("ignore", module=r"transformers|peft|accelerate|torch")
    # The first step of a run may have nothing to learn from, and the learning rate still follows its plan.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")


@contextmanager
def to_file(path: Path) -> Generator[None]:
    """Write every message to `path` too, those so far included."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for record in _early.records:
        handler.handle(record)
    _early.records.clear()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


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


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, or else its name."""
    text = str(error).strip()
    return printable(text.splitlines()[0] if text else type(error).__name__, 300).strip("'")
