"""luthier runs: list, show, compare, tail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

runs_app = typer.Typer(help="Look at run directories.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(help="Run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@runs_app.command("list")
def list_all(
    root: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"), json: AsJson = False
) -> None:
    """List the runs in a folder, newest first."""
    from luthier.cli import show
    from luthier.runs.store import list_runs, read_status

    runs = [{"run": str(path), **read_status(path)} for path in list_runs(root)]
    if json:
        show.as_json(runs=runs)
        return
    keys = ("state", "step", "total", "train_loss", "eval_loss")
    show.table([(run["run"], *(_short(run.get(key)) for key in keys)) for run in runs], ("run", *keys))


@runs_app.command("show")
def show_one(run: Run, json: AsJson = False) -> None:
    """Show status, settings and checkpoints of a run; each checkpoint is verified."""
    from luthier.cli import show

    facts = _facts(run)
    if json:
        show.as_json(**facts)
        return
    show.table([(key, value) for key, value in facts["status"].items() if not isinstance(value, dict)], ("status", ""))
    print()
    show.table([(c["name"], c["verified"]) for c in facts["checkpoints"]], ("checkpoint", "files"))


def _facts(run: Path) -> dict[str, Any]:
    import yaml

    from luthier.core.errors import RunError
    from luthier.runs.manifest import damage
    from luthier.runs.store import is_run, list_checkpoints, read_status

    if not is_run(run):
        raise RunError(f"{run} is no run directory (no status.json and config.yaml)")
    checkpoints = [{"name": path.name, "verified": damage(path) or "good"} for path in list_checkpoints(run)]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return {"run": str(run), "status": read_status(run), "checkpoints": checkpoints, "config": config}


@runs_app.command()
def compare(runs: Annotated[list[Path], typer.Argument(help="Run directories.")], json: AsJson = False) -> None:
    """Show the settings that differ between runs, and their results."""
    from luthier.cli import show

    facts = [_facts(run) for run in runs]
    flat = [{f"{s}.{k}": v for s, values in f["config"].items() for k, v in values.items()} for f in facts]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = {key: [one.get(key) for one in flat] for key in keys if len({str(one.get(key)) for one in flat}) > 1}
    results = {
        key: [f["status"].get(key) for f in facts]
        for key in ("state", "step", "train_loss", "eval_loss", "tokens_per_second", "peak_memory_bytes", "seconds")
    }
    if json:
        show.as_json(runs=[str(run) for run in runs], settings=differing, results=results)
        return
    rows = [(key, *map(_short, values)) for key, values in [*differing.items(), *results.items()]]
    show.table(rows, ("", *(run.name for run in runs)))


@runs_app.command()
def tail(
    run: Run,
    lines: Annotated[int, typer.Option(help="Events to show.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
) -> None:
    """Show the latest events of a run as JSON lines."""
    import json
    import time

    from luthier.runs.store import FINAL_STATES, read_events, read_status

    events = read_events(run)[-lines:]
    last = 0
    while True:
        for event in events:
            print(json.dumps(event, ensure_ascii=False), flush=True)
            last = event["seq"]
        if not follow or read_status(run).get("state") in (*FINAL_STATES, "crashed"):
            return
        time.sleep(0.5)
        events = [event for event in read_events(run) if event["seq"] > last]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
