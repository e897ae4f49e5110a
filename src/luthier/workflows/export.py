"""Write a model in the forms that were asked for, read each back, and give it its name only when it is as it should be.

Everything is written under temporary names: an export is there whole, or not at all.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError, ExportError, LuthierError, RunError
from luthier.core.log import logger
from luthier.core.paths import beside, sync_folder, write_whole
from luthier.core.progress import parts
from luthier.export.card import write_card
from luthier.export.verify.report import Report
from luthier.runs.store import is_run, slug
from luthier.workflows.export_forms import FORMS_OF_EXPORT, Form

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from luthier.config.schema import RunConfig

UNVERIFIED = ".unverified"
REPORT = "verify.json"


@dataclass(slots=True)
class Exported:
    """What one format wrote."""

    format: str
    folder: Path
    reports: list[Report] = field(default_factory=list)
    """One for each file or folder; empty when verification was switched off."""
    notes: list[str] = field(default_factory=list)
    """What the format cannot hold."""


def export_model(config: RunConfig) -> list[Exported]:
    """Write what `export_format` says.

    Raises RunError when a folder is taken, ConfigError or ModelError when this model has no such form, all before
    anything is written; ExportError when what was written is not what it should be: it stays under a name that ends
    in ".unverified".
    """
    asked = config.export.export_format
    forms = [name for name in FORMS_OF_EXPORT if asked in (name, "all")]
    obstacles = {name: _obstacle(FORMS_OF_EXPORT[name], config) for name in forms}
    if asked != "all" and (error := obstacles[asked]) is not None:
        raise error
    for name, error in obstacles.items():
        if error is not None:
            logger.info("%s is left out: %s", name, error)
    jobs = [(name, _target(config, name)) for name in forms if obstacles[name] is None]
    done: list[Exported] = []
    with parts(len(jobs)) as forms_done:
        for name, target in jobs:
            with forms_done.part():
                done.append(_export(config, name, target))
    return done


def _obstacle(form: Form, config: RunConfig) -> LuthierError | None:
    try:
        form.check(config)
    except LuthierError as error:
        return error
    return None


def _target(config: RunConfig, form: str) -> Path:
    """Return the folder to write: export_dir, else export/<format> in the run. Raises RunError when it is not empty."""
    name, asked = config.model.model_name_or_path, config.export.export_dir
    if asked is not None:
        target = Path(asked).expanduser() / (form if config.export.export_format == "all" else "")
    elif is_run(Path(name).expanduser()):
        target = Path(name).expanduser() / "export" / form
    else:
        raise RunError("export_dir is required where the model is no run directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"export_dir {target} is not empty; choose another folder", code="run_exists")
    return target


def display_name(config: RunConfig) -> str:
    """Return what the model is called in files and cards: its run or folder, never a path."""
    path = Path(config.model.model_name_or_path).expanduser()
    return slug(f"{path.parent.name}-{path.name}" if is_run(path.parent) else path.resolve().name)


def _export(config: RunConfig, form: str, target: Path) -> Exported:
    done = Exported(form, target)
    with _folder(target) as (folder, workplace), parts(1 + config.export.export_verify) as steps:
        with steps.part(f"writing {form} files"):
            written = FORMS_OF_EXPORT[form].write(config, folder, workplace, display_name(config))
        done.notes += written.notes
        if config.export.export_verify:
            with steps.part(f"reading {form} back"):
                done.reports += written.verify()
            write_whole(folder / REPORT, _as_json(done.reports))
        write_card(folder, config, display_name(config), form, reports=done.reports, notes=done.notes)
        failed = [report for report in done.reports if report.failed]
        files = [folder / report.subject for report in failed if (folder / report.subject).is_file()]
        for file in files:
            file.rename(file.with_name(file.name + UNVERIFIED))
        # A file that is not as it should be says so itself; of a folder, the whole is not to be used.
        kept = target if len(files) == len(failed) else _free(target.with_name(target.name + UNVERIFIED))
        _give_name(folder, kept)
        if failed:
            raise ExportError(_complaint(kept, failed))
    return done


def _complaint(kept: Path, failed: Sequence[Report]) -> str:
    reasons = [
        f"{report.subject}: {check.name}: {check.found} (limit: {check.limit})"
        for report in failed
        for check in report.checks
        if check.passed is False
    ]
    where = f"{kept}, under names that end in {UNVERIFIED}"
    return "\n  ".join([f"the export is not what it should be; it was kept in {where}:", *reasons])


@contextmanager
def _folder(target: Path) -> Generator[tuple[Path, Path]]:
    """Give a folder to write to, and a name for what only the work needs; whatever is left of both is removed."""
    temporary = beside(target)
    above = [parent for parent in target.parents if not parent.exists()]
    folder = temporary / target.name
    folder.mkdir(parents=True)
    try:
        yield folder, temporary / "work"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in above:
            if not any(parent.iterdir()):
                parent.rmdir()


def _give_name(folder: Path, target: Path) -> Path:
    if target.exists():
        target.rmdir()
    folder.rename(target)
    sync_folder(target.parent)
    return target


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _as_json(reports: Sequence[Report]) -> str:
    return json.dumps([report.as_dict() for report in reports], indent=1, ensure_ascii=False) + "\n"


def verify_only(path: Path, config: RunConfig | None) -> Report:
    """Verify a file or folder that is there; against its model where settings name one."""
    from luthier.export.verify import verify_file, verify_gguf
    from luthier.workflows.export_forms import source_of

    if not path.exists():
        raise RunError(f"{path} is not there", code="run_missing")
    if config is None:
        return verify_file(path)
    if path.is_dir():
        raise ConfigError("a folder is verified without a model: luthier export --verify-only FOLDER")
    workplace = beside(Path.cwd() / path.name)
    try:
        return verify_gguf(path, source_of(replace(config), workplace, display_name(config)))
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
