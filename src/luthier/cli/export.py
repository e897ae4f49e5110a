"""luthier export."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.common import AsJson, Overrides, Source, model_config


def export(
    source: Source,
    overrides: Overrides = None,
    format: Annotated[str | None, typer.Option(help="merged or adapter.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write.")] = None,
    json: AsJson = False,
) -> None:
    """Write a merged model, or the adapter alone, as a Hugging Face folder."""
    options = [f"export_format={format}"] * bool(format) + [f"export_dir={out}"] * bool(out)
    config = model_config(source, [*(overrides or []), *options])
    from luthier.cli.show import as_json
    from luthier.export.merge import export_model

    folder = export_model(config)
    as_json(folder=folder) if json else print(folder)
