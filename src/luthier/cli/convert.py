"""luthier convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import File, Overrides, is_setting, load
from luthier.core.errors import RunError


def convert(
    file: File,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="File to write; without it the text is printed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write settings in the nested form, each value with where it came from, and what was left out and why."""
    loaded = load(file, overrides)
    from luthier.config.convert import nested_yaml
    from luthier.core.paths import write_whole

    text = nested_yaml(loaded, "the command line" if is_setting(file) else file)
    if out is None:
        print(text, end="")
        return
    target = out.expanduser()
    if target.exists() and not force:
        raise RunError(f"{target} is there already; --force writes over it", code="run_exists")
    write_whole(target, text)
    print(target)
