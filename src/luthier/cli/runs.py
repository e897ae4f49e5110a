"""luthier runs: list, show, compare, tail; search; names, notes and tags; delete and bring back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

runs_app = typer.Typer(help="Look at run directories.", no_args_is_help=True)


def _folder(run: Path) -> Path:
    return RUNS / run if len(run.parts) == 1 and not run.exists() and RUNS.is_dir() else run


def _folders(runs: list[Path]) -> list[Path]:
    return [_folder(run) for run in runs]


RUNS = Path("runs")
Run = Annotated[Path, typer.Argument(help="Run directory, or the name of one in ./runs.", callback=_folder)]
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


FEW_METRICS = 12
"""So many are shown without being asked for."""


@runs_app.command("show")
def show_one(
    run: Run,
    metrics: Annotated[bool, typer.Option("--metrics", help="Show every metric, however many there are.")] = False,
    json: AsJson = False,
) -> None:
    """Show status and checkpoints of a run, each verified, and what its metrics say."""
    from luthier.cli import show
    from luthier.runs.health import examine
    from luthier.runs.samples import read_groups

    facts = {**_facts(run), **examine(run), "samples": len(read_groups(run))}
    if json:
        show.as_json(**facts)
        return
    show.table([(key, value) for key, value in facts["status"].items() if not isinstance(value, dict)], ("status", ""))
    print()
    show.table([(c["name"], c["verified"]) for c in facts["checkpoints"]], ("checkpoint", "files"))
    if len(facts["metrics"]) > FEW_METRICS and not metrics:
        print(f"\n{len(facts['metrics'])} metrics; --metrics shows them")
    elif facts["metrics"]:
        print()
        rows = [(name, _short(m["first"]), _short(m["last"]), m["healthy"]) for name, m in facts["metrics"].items()]
        show.table(rows, ("metric", "first", "last", "healthy"))
    print("\ndiagnosis")
    for finding in facts["diagnosis"]:
        print(f"  {finding['level']}: {finding['text']}")
    if not facts["judged"]:
        print("  too early: no metric has ten values yet")
    elif not facts["diagnosis"]:
        print(f"  nothing unusual in {facts['judged']} metrics")
    if facts["samples"]:
        print(f"\nsamples: {facts['samples']} groups of answers; read them with luthier runs samples {run}")


@runs_app.command()
def samples(
    run: Run,
    step: Annotated[int | None, typer.Option(help="Step to look at; none takes the last one.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Of all steps, the groups with the highest reward.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Of all steps, the groups with the lowest reward.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most groups to show.")] = 3,
    json: AsJson = False,
) -> None:
    """Read the answers that a run learned from: each prompt with its answers, the best one first."""
    from luthier.cli import show
    from luthier.core.errors import ConfigError, RunError
    from luthier.runs.samples import as_text, choose, read_groups

    if best and worst:
        raise ConfigError("--best and --worst are opposites; keep one")
    groups = read_groups(run)
    if not groups:
        raise RunError(f"{run} has no samples.jsonl: only runs that learn from answers of their own write it")
    chosen = choose(groups, step=step, order="best" if best else "worst" if worst else None)
    if not chosen:
        there = sorted({int(group["step"]) for group in groups})
        raise RunError(f"no answers of step {step} in {run}; there are steps {there[0]} to {there[-1]}")
    if json:
        show.as_json(groups=chosen[:limit], more=max(0, len(chosen) - limit))
        return
    print("\n\n".join(as_text(group) for group in chosen[:limit]))
    if len(chosen) > limit:
        print(f"\n{len(chosen) - limit} more groups; --limit {len(chosen)} shows all")


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
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or names.", callback=_folders)],
    json: AsJson = False,
) -> None:
    """Show the settings that differ between runs, their results, and their newest evaluations side by side."""
    from luthier.cli import show
    from luthier.evaluation import results as evaluations
    from luthier.evaluation import table

    facts = [_facts(run) for run in runs]
    flat = [{f"{s}.{k}": v for s, values in f["config"].items() for k, v in values.items()} for f in facts]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = {key: [one.get(key) for one in flat] for key in keys if len({str(one.get(key)) for one in flat}) > 1}
    results = {
        key: [f["status"].get(key) for f in facts]
        for key in ("state", "step", "train_loss", "eval_loss", "tokens_per_second", "peak_memory_bytes", "seconds")
    }
    folders = [evaluations.list_results(run)[:1] for run in runs]
    measured = [{**evaluations.read(f)["models"][-1], "folder": f} for found in folders for f in found]
    if json:
        show.as_json(runs=[str(run) for run in runs], settings=differing, results=results, evaluations=measured)
        return
    rows = [(key, *map(_short, values)) for key, values in [*differing.items(), *results.items()]]
    show.table(rows, ("", *(run.name for run in runs)))
    if measured:
        print()
        show.table(table.rows(measured, details=False), table.HEADER)


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


# ---- all of them at once

Root = Annotated[Path, typer.Option("--runs", help="Folder of runs.")]


def _index(root: Path) -> Any:
    from luthier.core.errors import RunError
    from luthier.runs.index import Index

    if not root.expanduser().is_dir():
        raise RunError(f"{root} is no folder; --runs names the folder of runs", code="run_missing")
    return Index(root.expanduser().resolve())


@runs_app.command()
def search(
    text: Annotated[list[str] | None, typer.Argument(help="Words, and settings such as rank:16; all of them.")] = None,
    state: Annotated[str, typer.Option(help="States, with commas between them.")] = "",
    objective: Annotated[str, typer.Option(help="Objectives, with commas between them.")] = "",
    model: Annotated[str, typer.Option(help="Models, with commas between them.")] = "",
    tag: Annotated[str, typer.Option(help="Tags, with commas between them.")] = "",
    since: Annotated[str, typer.Option(help="Created then or later, such as 2026-03-31.")] = "",
    until: Annotated[str, typer.Option(help="Created before; a day is in it.")] = "",
    archived: Annotated[bool, typer.Option("--archived", help="Those that are archived, too.")] = False,
    sort: Annotated[
        str, typer.Option(help="Column: created, updated, name, loss, best, seconds, bytes, ...")
    ] = "created",
    ascending: Annotated[bool, typer.Option("--ascending", help="The smallest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most runs to show.")] = 50,
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """Find runs by name, notes, tags, model, data and settings, the newest first."""
    from dataclasses import asdict

    from luthier.cli import show

    index = _index(runs)
    index.refresh()
    found, total = index.search(
        " ".join(text or []), state=state, objective=objective, model=model, tag=tag, since=since, until=until,
        archived=None if archived else False, sort=sort, descending=not ascending, count=limit,
    )  # fmt: skip
    if json:
        show.as_json(runs=[asdict(row) for row in found], total=total)
        return
    rows = [(row.id, row.name, row.state, row.objective, f"{row.step}/{row.total or '?'}", _short(row.loss),
             _short(row.best), " ".join(row.tags)) for row in found]  # fmt: skip
    show.table(rows, ("run", "name", "state", "objective", "step", "loss", "best", "tags"))
    if total > len(found):
        print(f"\n{total - len(found)} more; --limit {total} shows all")


@runs_app.command()
def reindex(runs: Root = RUNS, json: AsJson = False) -> None:
    """Make the index of runs anew from their folders."""
    from luthier.cli import show

    number = _index(runs).rebuild()
    show.as_json(runs=number) if json else print(f"{number} runs")


def _note(run: Path, *, json: bool, **changes: Any) -> None:
    from dataclasses import asdict

    from luthier.cli import show
    from luthier.core.errors import RunError
    from luthier.runs import notes
    from luthier.runs.store import is_run

    if not is_run(run):
        raise RunError(f"{run} is no run directory (no status.json and config.yaml)", code="run_missing")
    found = notes.change(run, **changes) if changes else notes.read(run)
    if json:
        show.as_json(run=str(run), **asdict(found))
    else:
        show.table([(key, ", ".join(value) if key == "tags" else value) for key, value in asdict(found).items()],
                   (run.name, ""))  # fmt: skip


@runs_app.command()
def tag(
    run: Run,
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to add; none shows them.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Tag to take away; repeat.")] = None,
    json: AsJson = False,
) -> None:
    """Add tags to a run, or take them away."""
    from luthier.runs import notes

    kept = [each for each in notes.read(run).tags if each not in (remove or [])]
    changes = {"tags": [*kept, *(tags or [])]} if tags or remove else {}
    _note(run, json=json, **changes)


@runs_app.command()
def note(
    run: Run,
    text: Annotated[str | None, typer.Argument(help="Notes that take the place of the old ones.")] = None,
    json: AsJson = False,
) -> None:
    """Write notes about a run, or show them."""
    _note(run, json=json, **({} if text is None else {"notes": text}))


@runs_app.command()
def rename(
    run: Run, name: Annotated[str, typer.Argument(help="Name to show; the folder keeps its own.")], json: AsJson = False
) -> None:
    """Give a run another name."""
    _note(run, json=json, name=name)


@runs_app.command()
def archive(
    run: Run,
    back: Annotated[bool, typer.Option("--back", help="Show it in the list again.")] = False,
    json: AsJson = False,
) -> None:
    """Keep a run out of the list; nothing is deleted."""
    _note(run, json=json, archived=not back)


@runs_app.command()
def delete(
    run: Run,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Delete a run; for half a minute `luthier runs undelete` brings it back."""
    from dataclasses import asdict

    from luthier.cli import show
    from luthier.core.errors import RunError
    from luthier.runs import trash
    from luthier.runs.job_files import ACTIVE, WAITING
    from luthier.runs.jobs import Jobs
    from luthier.runs.store import is_run

    path = run.expanduser().absolute()
    if not is_run(path):
        raise RunError(f"{run} is no run directory (no status.json and config.yaml)", code="run_missing")
    job = Jobs(path.parent).for_run(path.name)
    if job is not None and job.state in (*WAITING, *ACTIVE):
        raise RunError(f"job {job.id} ({job.state}) trains {run}; stop or cancel it first", code="run_locked")
    gone = trash.contents(path)
    if not dry_run:
        trash.purge(path.parent)
        trash.delete(path.parent, path.name)
    if json:
        show.as_json(run=str(run), done=not dry_run, **asdict(gone))
        return
    parts = [f"{gone.files} files", f"{gone.bytes / 1e6:.1f} MB", f"{gone.checkpoints} checkpoints", *gone.exports]
    print(f"{run}: {', '.join(parts)}{' would go' if dry_run else ' deleted'}")
    if not dry_run:
        print(f"for {trash.UNDO_SECONDS:.0f} s it can be brought back: luthier runs undelete {run}")


@runs_app.command()
def undelete(run: Run, json: AsJson = False) -> None:
    """Bring back a run that was deleted within the last half minute, or not emptied since."""
    from luthier.cli import show
    from luthier.runs import trash

    path = run.expanduser().absolute()
    back = trash.undelete(path.parent, path.name)
    show.as_json(run=str(back)) if json else print(back)


@runs_app.command("trash")
def show_trash(
    empty: Annotated[bool, typer.Option("--empty", help="Remove all of it now.")] = False,
    runs: Root = RUNS,
    json: AsJson = False,
) -> None:
    """List what was deleted and is not removed yet; remove what was deleted more than half a minute ago."""
    from luthier.cli import show
    from luthier.runs import trash

    removed = trash.purge(runs, 0.0 if empty else trash.UNDO_SECONDS)
    left = trash.entries(runs)
    if json:
        show.as_json(removed=removed, runs=[{"run": each.run, "undo_until": each.undo_until} for each in left])
        return
    for each in left:
        print(each.run)
    print(f"{removed} removed")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
