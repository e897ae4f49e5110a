"""luthier evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import AsJson, Source, is_setting, model_config

if TYPE_CHECKING:
    from luthier.workflows.evaluate import Comparison


def evaluate(
    source: Source,
    more: Annotated[list[str] | None, typer.Argument(help="More sources, and settings as key=value.")] = None,
    compare: Annotated[
        bool | None, typer.Option("--compare/--no-compare", help="Measure what a model was made from, too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results, or .jsonl file for the answers alone.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the results in a run; none takes the time.")] = None,
    details: Annotated[bool, typer.Option("--details", help="Show every part: subjects, fields.")] = False,
    json: AsJson = False,
) -> None:
    """Measure models on held-out rows, each run beside the model that it was made from, in one table."""
    given = more or []
    sources = [each for each in (source, *given) if not is_setting(each)]
    overrides = _overrides([each for each in (source, *given) if is_setting(each)])
    configs = [model_config(each, overrides) for each in sources or [None]]
    from luthier.cli import show
    from luthier.evaluation import table
    from luthier.workflows.evaluate import evaluate_all

    found = evaluate_all(configs, base=compare, out=out, name=name)
    if json:
        show.as_json(**found.as_dict(), folders=[str(folder) for folder in found.folders], **_in_short(found))
        return
    show.table(table.rows(found.as_dict()["models"], details=details), table.HEADER)
    notes = dict.fromkeys(note for evaluation in found.evaluations for note in evaluation.notes)
    for line in [*notes, *(f"written: {folder}" for folder in found.folders)]:
        print(f"\n{line}")


def _overrides(settings: list[str]) -> list[str]:
    """Return the settings; rows that are named here take the place of those that a run has set aside."""
    keys = {text.partition("=")[0].removeprefix("--").removeprefix("data.") for text in settings}
    return [*settings, "val_size=0"] if "eval_dataset" in keys and "val_size" not in keys else settings


def _in_short(found: Comparison) -> dict[str, Any]:
    """Return the share of exact answers of the last model, and of the one before it that it is compared with."""
    from luthier.evaluation.kind import EXACT

    last = found.evaluations[-1]
    by_name = {each.model: each for each in found.evaluations}
    exact = [each for each in last.measures if each.name == EXACT]
    if not exact:
        return {"model": last.model}
    before = {"before": by_name[last.against].exact_match} if last.against in by_name else {}
    return {
        "model": last.model,
        "exact_match": last.exact_match,
        "interval": last.interval,
        "rows": exact[0].rows,
        **before,
    }
