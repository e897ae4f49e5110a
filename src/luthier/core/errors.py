"""Errors that are the user's to read: what was wrong, what was found, what to do."""

from __future__ import annotations


class LuthierError(Exception):
    """A mistake or a condition that a person can act on; printed without a traceback.

    `code` is the stable name that `--json` prints, `exit_code` what the process returns.
    """

    code = "failed"
    exit_code = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigError(LuthierError):
    """A setting is unknown, malformed or contradicts another one."""

    code = "config"
    exit_code = 2


class DataError(LuthierError):
    """A data set cannot be read or a row cannot be trained on."""

    code = "data"
    exit_code = 2


class ModelError(LuthierError):
    """A model, adapter or tokenizer cannot be used."""

    code = "model"
    exit_code = 2


class RunError(LuthierError):
    """A run directory is locked, finished, foreign or cannot be resumed as asked."""

    code = "run"
    exit_code = 2


class DependencyError(LuthierError):
    """An optional package is missing; the message holds the command that installs it."""

    code = "missing_dependency"
    exit_code = 2


class TrainingError(LuthierError):
    """Training had to stop; the last checkpoint stands."""

    code = "training"
    exit_code = 1


class ExportError(LuthierError):
    """An export was written and is not what it should be; it was kept under a name that says so."""

    code = "export_unverified"
    exit_code = 1


class Interrupted(LuthierError):
    """A person or a scheduler asked the run to stop; a checkpoint was written."""

    code = "interrupted"

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
