"""luthier evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import AsJson, Overrides, Source, model_config


def evaluate(
    source: Source,
    overrides: Overrides = None,
    compare: Annotated[bool, typer.Option("--compare", help="Grade the base too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write predictions as JSON lines.")] = None,
    json: AsJson = False,
) -> None:
    """Answer held-out rows (eval_dataset) and count exact answers."""
    config = model_config(source, overrides)
    from luthier.cli.show import as_json
    from luthier.workflows.evaluate import evaluate as run_evaluation

    if compare:
        base = run_evaluation(config, base=True)
        print(base.line(), file=sys.stderr if json else sys.stdout)
    result = run_evaluation(config, out=out)
    if json:
        before = {"before": base.exact_match} if compare else {}
        as_json(
            model=result.model,
            exact_match=result.exact_match,
            interval=result.interval,
            rows=len(result.predictions),
            **before,
        )
    else:
        print(result.line())
