"""Errors of arguments that scripts give."""

from __future__ import annotations

from luthier.core.errors import ConfigError


class ArgumentError(ConfigError, ValueError):
    """An argument has a value that cannot be used. Scripts may catch it as ValueError."""
