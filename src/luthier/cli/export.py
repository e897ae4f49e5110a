"""luthier export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.common import AsJson, Overrides, is_setting, model_config
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from luthier.export.verify.report import Report


def export(
    source: Annotated[
        str | None, typer.Argument(help="YAML file, run directory, checkpoint, model folder or alias.")
    ] = None,
    overrides: Overrides = None,
    format: Annotated[
        str | None, typer.Option(help="merged, adapter, gguf, gguf_adapter, ollama, or all that this model has.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of merged weights: float32, bfloat16 or float16.")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Forms of GGUF files, with commas between them: f16,q8_0,q4_k_m.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write.")] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not read back and compare; the card says so.")
    ] = False,
    verify_only: Annotated[
        Path | None, typer.Option(help="Verify this file or folder, against SOURCE if given; write nothing.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Write a model for others to use: merged, adapter, GGUF or Ollama; read it back, run it, compare it."""
    given = {"export_format": format, "export_dtype": dtype, "export_quantize": quantize and f"[{quantize}]",
             "export_dir": out, "export_verify": "false" if no_verify else None}  # fmt: skip
    options = [*(overrides or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    if (
        source is not None
        and is_setting(source)
        and not any("model_name_or_path=" in each for each in (source, *options))
    ):
        raise ConfigError(f"the model comes first: luthier export MODEL {source}", code="config_missing")
    if verify_only is not None:
        _verify(verify_only, source, options, as_json=json)
        return
    if source is None:
        raise ConfigError("a model is required: luthier export MODEL", code="config_missing")
    config = model_config(source, options)
    from luthier.cli import show
    from luthier.workflows.export import export_model

    done = export_model(config)
    if json:
        exports = [
            {"format": d.format, "folder": d.folder, "files": sorted(f.name for f in d.folder.iterdir()),
             "notes": d.notes, "verify": [report.as_dict() for report in d.reports]}
            for d in done
        ]  # fmt: skip
        show.as_json(folder=done[0].folder, exports=exports)
        return
    for each in done:
        for report in each.reports:
            _show(report)
        for note in each.notes:
            print(f"note: {note}")
        print(each.folder)


def _verify(path: Path, source: str | None, options: list[str], *, as_json: bool) -> None:
    from luthier.cli import show
    from luthier.workflows.export import verify_only

    report = verify_only(path, None if source is None else model_config(source, options))
    if as_json:
        show.as_json(**report.as_dict())
    else:
        _show(report)
    raise typer.Exit(1 if report.failed else 0)


def _show(report: Report) -> None:
    from luthier.cli import show

    print(f"{report.subject}: {'NOT as it should be' if report.failed else 'verified'}")
    show.table(report.table(), ("", "check", "found", "limit"))
