"""What the commands share: their arguments, and how a source becomes settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Source = Annotated[str, typer.Argument(help="YAML file, run directory, checkpoint, model folder or alias.")]
File = Annotated[str, typer.Argument(help="YAML file with settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

_NOTHING_ON_TOP = ("model.adapter_name_or_path=", "model.create_new_adapter=false")
"""A run is found with all that it stands on."""


def model_config(source: str, overrides: list[str] | None) -> Any:
    """Return settings for using a model: from a YAML (its run, if it was trained), a run directory, or a name."""
    from luthier.config.load import load_config
    from luthier.runs.store import is_run

    path, given = Path(source).expanduser(), overrides or []
    if path.suffix in (".yaml", ".yml"):
        loaded = load_config(path, given)
        made = loaded.config.train.output_dir
        if made and is_run(Path(made).expanduser()) and not loaded.config.model.adapter_name_or_path:
            return load_config(path, [*given, f"model.model_name_or_path={made}"]).config
        return loaded.config
    for folder in (path, path.parent):
        if is_run(folder):
            fixed = [f"model.model_name_or_path={path}", *_NOTHING_ON_TOP]
            return load_config(folder / "config.yaml", [*fixed, *given]).config
    return load_config({"model_name_or_path": source}, given).config
