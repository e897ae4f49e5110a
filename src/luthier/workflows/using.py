"""Settings for using a model that has a name, or was trained here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.config.load import load_config
from luthier.runs.store import is_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.config.schema import RunConfig

SETTINGS_FILES = (".yaml", ".yml", ".json")
_NOTHING_ON_TOP = ("model.adapter_name_or_path=", "model.create_new_adapter=false")
"""A run is found with all that it stands on."""


def settings_of(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return settings for using a model: from a file (its run, if it was trained), a run directory, or a name."""
    path, given = Path(source).expanduser(), list(overrides)
    if path.suffix in SETTINGS_FILES:
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
