"""luthier data: audit, preview, list."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from luthier.cli.common import AsJson, File, Overrides

data_app = typer.Typer(help="Look at data sets before training on them.", no_args_is_help=True)


@data_app.command()
def audit(
    file: File,
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    json: AsJson = False,
) -> None:
    """Read every row; list what is wrong with file, line and remedy."""
    from luthier.cli import show
    from luthier.config.load import load_config
    from luthier.core.errors import ConfigError
    from luthier.data.prepare import prepare
    from luthier.workflows.build import read_preparer

    config = load_config(file, overrides or []).config
    if not config.data.dataset:
        raise ConfigError("dataset is required", code="config_missing")
    preparer = read_preparer(config)
    _, report = prepare((*config.data.dataset, *config.data.eval_dataset), preparer)
    if json:
        show.as_json(**report.as_dict())
    else:
        print("\n".join(report.lines()))
    bad = report.num_errors or not report.trained_rows or (strict and report.counts.total())
    raise typer.Exit(2 if bad else 0)


@data_app.command()
def preview(
    file: File,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="Rows to show.")] = 3,
    json: AsJson = False,
) -> None:
    """Show the tokens of rows, with those that are learned marked: exactly what training sees."""
    from itertools import islice

    from luthier.cli import show
    from luthier.config.load import load_config
    from luthier.data.prepare import prepare
    from luthier.workflows.build import read_preparer

    config = load_config(file, overrides or []).config
    preparer = read_preparer(config)
    units, report = prepare(config.data.dataset, preparer)
    tokenizer = preparer.template.tokenizer
    for unit in islice(units, rows):
        names = _names(unit, preparer.kind)
        segments = [{"name": n, **_segment(s, tokenizer)} for n, s in zip(names, unit, strict=True)]
        if json:
            show.as_json(row=unit[0].origin, segments=segments)
        else:
            for segment in segments:
                learned = sum(w > 0 for w in segment["weights"])
                print(
                    f"--- {unit[0].origin} {segment['name']}".rstrip()
                    + f": {len(segment['ids'])} tokens, {learned} learned"
                )
                print(show.tokens(segment["tokens"], segment["weights"]))
    for finding in report.errors()[:rows]:
        print(f"error: {finding}", file=sys.stderr)


def _names(unit: Any, kind: str) -> tuple[str, ...]:
    """Return what the segments of a unit are called."""
    if kind == "tagged":
        return ("desirable" if unit[0].tags["desirable"] else "undesirable", "answer to another prompt")
    return ("chosen", "rejected") if kind == "pair" else ("",) * len(unit)


def _segment(segment: Any, tokenizer: Any) -> dict[str, list[Any]]:
    """Return ids, texts and weights; characters that span several tokens stand at the last of them."""
    texts, pending = [], []
    for token in segment.tokens:
        pending.append(token)
        text = tokenizer.decode(pending, clean_up_tokenization_spaces=False)
        texts.append("" if text.endswith("\ufffd") and len(pending) < 8 else text)
        pending = pending if texts[-1] == "" and text else []
    return {"ids": segment.tokens, "tokens": texts, "weights": segment.weight}


@data_app.command("list")
def list_data(
    folder: Annotated[str, typer.Argument(help="Folder with dataset_info.json.")] = "data", json: AsJson = False
) -> None:
    """List the data sets that dataset_info.json in a folder names, and the files beside it."""
    from pathlib import Path

    from luthier.cli import show
    from luthier.core.errors import DataError
    from luthier.data.registry_file import REGISTRY_FILE, open_shelf
    from luthier.data.sources import READERS

    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is no folder", code="data_missing")
    named = [(name, entry.get("file_name") or entry.get("hf_hub_url"), entry.get("formatting", "alpaca"))
             for name, entry in open_shelf(folder).entries.items()]  # fmt: skip
    files = [
        (p.name, p.name, "by path") for p in sorted(root.iterdir()) if p.suffix in READERS and p.name != REGISTRY_FILE
    ]
    if json:
        show.as_json(datasets=[dict(zip(("name", "source", "format"), row, strict=True)) for row in [*named, *files]])
    else:
        show.table([*named, *files], ("name", "source", "format"))
