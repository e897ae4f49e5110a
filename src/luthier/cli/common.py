"""What the commands share: their arguments, and how a source becomes settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.config.load import Loaded

Source = Annotated[str, typer.Argument(help="YAML or JSON file, run directory, checkpoint, model folder or alias.")]
File = Annotated[str, typer.Argument(help="YAML or JSON file with settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_SETTING = re.compile(r"(--)?[A-Za-z_][\w.]*=")


def is_setting(text: str) -> bool:
    """Tell whether an argument is key=value and not the name of a model.

    >>> is_setting("max_new_tokens=5"), is_setting("runs/lr=1e-3"), is_setting("runs/a")
    (True, False, False)
    """
    return _SETTING.match(text) is not None and not Path(text).expanduser().exists()


def load(file: str | None, overrides: list[str] | None) -> Loaded:
    """Return the settings of a file; or of key=value alone, where no file stands in front."""
    from luthier.config.load import load_config

    given = overrides or []
    if file is None or is_setting(file):
        return load_config({}, [file, *given] if file else given)
    return load_config(file, given)


def model_config(source: str | None, overrides: list[str] | None) -> Any:
    """Return settings for using a model: from a file (its run, if it was trained), a run directory, or a name.

    Without any of them, the settings themselves name the model.
    """
    if source is None or is_setting(source):
        return load(source, overrides).config
    from luthier.workflows.using import settings_of

    return settings_of(source, overrides or [])
