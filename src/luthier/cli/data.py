"""luthier data: audit, preview, list, rows, clean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import AsJson, File, Overrides

SEARCH_SECONDS = 60.0
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
    from luthier.data.audit_files import keep_audit
    from luthier.data.prepare import prepare
    from luthier.data.sources import find_sources
    from luthier.workflows.build import read_preparer

    config = load_config(file, overrides or []).config
    if not config.data.dataset:
        raise ConfigError("dataset is required", code="config_missing")
    preparer = read_preparer(config)
    names = (*config.data.dataset, *config.data.eval_dataset)
    _, report = prepare(names, preparer)
    sources = find_sources(names, config.data)
    if len(sources) == 1 and sources[0].path is not None:
        keep_audit(sources[0].path, report, config.data.cutoff_len)
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
    from luthier.workflows.preview import names_of, texts_of

    config = load_config(file, overrides or []).config
    preparer = read_preparer(config)
    units, report = prepare(config.data.dataset, preparer)
    tokenizer = preparer.template.tokenizer
    for unit in islice(units, rows):
        segments = [
            {"name": name, "ids": s.tokens, "tokens": texts_of(s.tokens, tokenizer), "weights": s.weight}
            for name, s in zip(names_of(unit, preparer.kind), unit, strict=True)
        ]
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


@data_app.command("list")
def list_data(
    folder: Annotated[str, typer.Argument(help="Folder with dataset_info.json.")] = "data", json: AsJson = False
) -> None:
    """List the data sets that dataset_info.json in a folder names, and the files beside it."""
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


@data_app.command()
def rows(
    file: Annotated[Path, typer.Argument(help="File of rows: json, jsonl, csv, parquet, arrow or txt.")],
    start: Annotated[int, typer.Option(min=0, help="Place of the first row, from 0 on.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 10,
    search: Annotated[str, typer.Option(help="Only rows that hold this text.")] = "",
    json: AsJson = False,
) -> None:
    """Show rows as they stand in a file, from any place, however large it is; nothing is tokenized."""
    from luthier.cli import show
    from luthier.core.log import printable
    from luthier.data.row_index import RowFile

    found = RowFile(file.expanduser())
    found.build()
    places = found.find(search, start, count, SEARCH_SECONDS)[0] if search else range(start, start + count)
    shown = [(place, row) for place in places for row in found.rows(place, 1)]
    if json:
        listed = [{"row": place, "line": r.line, "value": r.value, "broken": r.broken} for place, r in shown]
        show.as_json(total=found.total, rows=listed)
        return
    for place, row in shown:
        print(f"{place} (line {row.line}): {row.broken and f'{row.broken}: '}{printable(row.value, 400)}")
    print(f"{found.total} rows", file=sys.stderr)


@data_app.command()
def clean(
    file: Annotated[Path, typer.Argument(help="File of rows that `luthier data audit` has read.")],
    drop: Annotated[str, typer.Option(help="Kinds of findings whose rows are left out, separated by commas.")],
    out: Annotated[Path | None, typer.Option(help="File to write; without it the change is only shown.")] = None,
    json: AsJson = False,
) -> None:
    """Copy a data file without the rows that its audit found fault with; the file itself stays as it is."""
    from dataclasses import asdict

    from luthier.cli import show
    from luthier.core.log import printable
    from luthier.data.clean import clean as copy_clean

    kinds = [kind.strip() for kind in drop.split(",") if kind.strip()]
    found = copy_clean(file.expanduser(), kinds, out.expanduser() if out else None)
    if json:
        show.as_json(**asdict(found))
        return
    for each in found.examples:
        print(f"{file}:{each['line']} {each['kind']}: {printable(each['row'], 120)}", file=sys.stderr)
    print(f"{found.before} rows, {found.after} without {', '.join(f'{k} ({n})' for k, n in found.dropped.items())}")
    print(found.written or "nothing was written; --out NEW writes them")
