"""The commands beside `data` and `runs`, and how errors reach a person."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.arguments import translate
from luthier.cli.chat import chat
from luthier.cli.common import AsJson, File, Overrides
from luthier.cli.common import load as _load
from luthier.cli.convert import convert
from luthier.cli.data import data_app
from luthier.cli.evaluate import evaluate
from luthier.cli.export import export
from luthier.cli.queue import queue_app
from luthier.cli.runs import runs_app
from luthier.cli.serve import keys_app, serve
from luthier.cli.ui import ui
from luthier.core.errors import Interrupted, LuthierError, RunError
from luthier.core.log import is_main_process, logger, setup

if TYPE_CHECKING:
    from luthier.config.load import Loaded

app = typer.Typer(
    help="Fine-tune, evaluate, talk to, export and serve open language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`luthier explain` lists every setting; each can be given as key=value behind the file.",
)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(queue_app, name="queue")
app.add_typer(keys_app, name="keys")


@app.command()
def train(
    file: File,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="auto, must, never, or the path of a checkpoint.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    json: AsJson = False,
) -> None:
    """Train a model; write a run directory that is also a model."""
    loaded = _load(file, [*(overrides or []), *([f"train.resume={resume}"] if resume else [])])
    if dry_run:
        _dry_run(loaded, as_json=json)
        return
    from dataclasses import asdict

    from luthier.cli.show import as_json
    from luthier.models.value import only_grades
    from luthier.workflows.stages import carry_out

    result = carry_out(loaded.config, quiet=quiet)
    if not is_main_process():
        return
    if json:
        as_json(**asdict(result))
        return
    if result.status == "measured":
        print(result.run)
        return
    grades = only_grades(loaded.config.objective.needs)
    first = "let it grade: reward_model: %s" if grades else "talk to it:  luthier chat %s --compare"
    logger.info(f"{first}\nexport it:   luthier export %s", result.run, result.run)
    print(result.run)


def _dry_run(loaded: Loaded, *, as_json: bool) -> None:
    from dataclasses import asdict

    from luthier.cli import show
    from luthier.config.load import dump
    from luthier.workflows.estimate import estimate as run_estimate

    plan = run_estimate(loaded.config)
    if as_json:
        show.as_json(config=dump(loaded.config), estimate={**asdict(plan), "peak_bytes": plan.peak_bytes})
    else:
        print("\n".join([*plan.lines(), "nothing was written"]))


for command in (chat, convert, evaluate, export, serve, ui):
    app.command()(command)


@app.command()
def validate(file: File, overrides: Overrides = None, json: AsJson = False) -> None:
    """Check settings; show every value and where it came from."""
    from luthier.cli import show
    from luthier.config.load import dump
    from luthier.workflows.judges import judges_of

    loaded = _load(file, overrides or [])
    judges_of(loaded.config)
    flat = {f"{s}.{k}": v for s, values in dump(loaded.config).items() for k, v in values.items()}
    if json:
        show.as_json(
            ok=True,
            settings={k: {"value": v, "from": loaded.place(k)} for k, v in flat.items()},
            notices=loaded.notices,
        )
    else:
        show.table([(key, value, loaded.place(key)) for key, value in flat.items()], ("setting", "value", "from"))


@app.command()
def estimate(file: File, overrides: Overrides = None, json: AsJson = False) -> None:
    """Estimate memory and time before training, and say what the numbers rest on."""
    _dry_run(_load(file, overrides or []), as_json=json)


@app.command()
def models(json: AsJson = False) -> None:
    """List models with short names and whether they are on this machine."""
    from luthier.cli import show
    from luthier.models.aliases import ALIASES, where

    rows = [(name, alias.about, alias.licence, where(name)) for name, alias in ALIASES.items()]
    if json:
        show.as_json(models=[dict(zip(("name", "about", "licence", "where"), row, strict=True)) for row in rows])
    else:
        show.table(rows, ("name", "about", "licence", "where"))


@app.command()
def init(file: Annotated[Path, typer.Argument(help="File to write.")] = Path("luthier.yaml")) -> None:
    """Write a commented YAML to begin with."""
    from luthier.cli.init import commented_yaml

    if file.exists():
        raise RunError(f"{file} exists; it is not written over")
    file.write_text(commented_yaml(), encoding="utf-8")
    print(file)


@app.command()
def doctor(
    build: Annotated[bool, typer.Option("--build", help="Compile the C++ kernels now.")] = False, json: AsJson = False
) -> None:
    """Say what this machine has, what is usable and why not."""
    from luthier.cli import show
    from luthier.cli.doctor import findings

    if build:
        from luthier.kernels.native import unusable

        unusable()

    found = findings()
    if json:
        show.as_json(checks=[dict(zip(("level", "what", "found", "remedy"), f, strict=True)) for f in found])
    else:
        show.table(found, ("", "what", "found", "remedy"))
    if any(level == "fault" for level, *_ in found):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    print(version_of("luthier"))


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="Setting, section, objective or tuning.")] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema instead.")] = False,
) -> None:
    """Explain settings: type, limits, default, meaning."""
    import json

    from luthier.cli import show
    from luthier.config.load import json_schema

    if schema:
        print(json.dumps(json_schema(), indent=1))
        return
    lines = show.settings_help(key)
    if not lines:
        from luthier.config import compat
        from luthier.config.load import homes
        from luthier.core.registry import did_you_mean

        facts = {**compat.RENAMED, **compat.IGNORED, **compat.REFUSED}
        facts |= {key: f"{dotted}: {value}" for key, (dotted, value) in compat.SWITCHES.items()}
        facts |= {key: f"only {' or '.join(map(str, v))}: {reason}" for key, (v, reason) in compat.ONLY.items()}
        if key in facts:
            lines = [f"{key}: {facts[key]}"]
        else:
            raise LuthierError(f"no setting {key!r}{did_you_mean(key, [*homes()])}", code="config_unknown_key")
    print("\n".join(lines).strip())


def main() -> None:
    """Run the command line; errors meant for people are printed without a traceback."""
    setup(os.environ.get("LUTHIER_LOG_LEVEL", "INFO"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_before_training)
    try:
        commands: Any = typer.main.get_command(app)
        own = {name: _options(command) for name, command in commands.commands.items()}
        commands(args=translate(sys.argv[1:], own, os.environ))
    except LuthierError as error:
        code = _report(str(error), error.code, error.exit_code, error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (MemoryError, RuntimeError, OSError) as error:
        kind = _condition_of_the_machine(error)
        if kind is None:
            raise
        code = _report(_out_of_memory(error) if kind == "out_of_memory" else str(error), kind, 1, error)
    sys.exit(code)


def _options(command: Any) -> frozenset[str]:
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    inner = [_options(each) for each in getattr(command, "commands", {}).values()]
    return frozenset({*names, "--help"}).union(*inner)


def _stop_before_training(number: int, _frame: object) -> None:
    raise Interrupted("stopped; there was nothing to save", signal_number=number)


_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES)


def _condition_of_the_machine(error: Exception) -> str | None:
    """Return what the machine lacks (memory, space, permission) behind an error; None for a fault of ours."""
    if isinstance(error, OSError):
        return "disk_full" if error.errno in _NO_SPACE else None
    lacks = isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error).lower()
    return "out_of_memory" if lacks else None


def _out_of_memory(error: Exception) -> str:
    return (
        f"out of memory: {str(error).splitlines()[0] if str(error) else 'the process limit was reached'}. Halve "
        "per_device_train_batch_size and double gradient_accumulation_steps (the result is the same), lower "
        "cutoff_len, or set gradient_checkpointing: true; then go on with --resume auto"
    )


def _report(text: str, code: str, exit_code: int, error: BaseException | None = None) -> int:
    if os.environ.get("LUTHIER_DEBUG") == "1" and error is not None:
        import traceback

        traceback.print_exception(error)
    if "--json" in sys.argv:
        from luthier.cli.show import as_json

        as_json(ok=False, error={"code": code, "message": text})
    print(text, file=sys.stderr)
    return exit_code
