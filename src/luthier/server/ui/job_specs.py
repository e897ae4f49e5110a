"""What the page asks for -> the job that does it: settings checked, sources below the declared folders."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from luthier.config.convert import as_yaml
from luthier.core.errors import RunError
from luthier.core.log import printable
from luthier.core.registry import did_you_mean
from luthier.models.aliases import ALIASES
from luthier.runs.job_files import JobSpec
from luthier.runs.store import is_run, list_checkpoints, slug
from luthier.runs.trash import is_one_name
from luthier.server.ui.failures import Refused, missing
from luthier.server.ui.sets import find_set
from luthier.server.ui.settings import read_settings
from luthier.workflows.job_specs import CONFIG, as_file, luthier, said, train_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luthier.config.load import Loaded
    from luthier.server.ui.shapes.jobs import NewJob
    from luthier.server.ui.state import State

KEY = "key"
"""File of a job that serves: what lets the page in. The process itself gets the hash."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_OPTIONS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "train": {"memory_bytes": int},
    "evaluate": {"compare": bool},
    "export": {"format": str, "dtype": str, "quantize": list, "verify": bool},
    "serve": {"adapters": dict},
    "audit": {"dataset": str, "folder": str},
}
"""Kind -> options that it takes and their types."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is evaluated, exported or served."""

    name: str
    """As the command line takes it."""
    run: str | None
    """Id of the run that it lies in."""
    path: Path | None
    """None for an alias and for a name of the hub."""


def spec_of(state: State, asked: NewJob) -> JobSpec:
    """Return the job; nothing is written. Raises Mistaken, Refused or RunError for what cannot be."""
    _check_options(asked)
    return _BUILDERS[asked.kind](state, asked)


def _check_options(asked: NewJob) -> None:
    known = _OPTIONS[asked.kind]
    for name, value in asked.options.items():
        if name not in known:
            said = f"{asked.kind} has no option {printable(name)}{did_you_mean(name, [*known])}"
            raise Refused(422, "job_option", said, field=f"options.{name}")
        if value is not None and (not isinstance(value, known[name]) or (known[name] is int and value is True)):
            kind = cast("type", known[name]).__name__
            raise Refused(
                422, "job_option", f"{name}: expected {kind}, found {printable(value)}", field=f"options.{name}"
            )


def _common(asked: NewJob) -> dict[str, Any]:
    return {"request_id": asked.request_id, "name": asked.name, "when": asked.when, "notes": asked.notes,
            "tags": tuple(asked.tags)}  # fmt: skip


# ---- train


def _train(state: State, asked: NewJob) -> JobSpec:
    more = {**_common(asked), "memory_bytes": asked.options.get("memory_bytes")}
    if asked.resume is not None:
        return _resume(state, asked, more)
    loaded = _read(state, asked)
    if not loaded.config.data.dataset:
        raise Refused(422, "config_missing", "dataset is required: choose the rows to learn from", field="data.dataset")
    return train_spec(loaded, **more)


def _resume(state: State, asked: NewJob, more: dict[str, Any]) -> JobSpec:
    run = state.roots.run(str(asked.resume))
    if not is_run(run):
        raise missing("run", asked.resume)
    if asked.values is not None or asked.yaml is not None:
        said = "a run goes on with the settings that it began with; start a new one to change them"
        raise Refused(422, "job_resume", said, field="values")
    if not list_checkpoints(run):
        raise RunError(f"{run.name} has no checkpoint to go on from", code="run_no_checkpoint")
    loaded = read_settings(
        state.roots,
        values=_settings_of(run),
        overrides=["train.resume=must", "train.overwrite_output_dir=false"],
        allow_remote_code=state.allow_remote_code,
    )
    return train_spec(loaded, **{**more, "name": ""}, run=run.name)


# ---- evaluate, export, serve


def _evaluate(state: State, asked: NewJob) -> JobSpec:
    sources = _sources(state, asked)
    settings, *_ = [_more_settings(state, asked, source) for source in sources]
    compare = asked.options.get("compare")
    flags = [] if compare is None else ["--compare" if compare else "--no-compare"]
    return _using(asked, sources, luthier("evaluate", *(each.name for each in sources), *settings, *flags, "--json"))


def _export(state: State, asked: NewJob) -> JobSpec:
    (source,) = _sources(state, asked, most=1)
    options = asked.options
    given = {"export_format": options.get("format"), "export_dtype": options.get("dtype"),
             "export_quantize": options.get("quantize"), "export_verify": options.get("verify")}  # fmt: skip
    named = (asked.values or {}).get("export", {}).get("export_dir")
    if not named and (source.path is None or not is_run(source.path)):
        given["export_dir"] = str(_export_folder(state, source, str(options.get("format") or "merged")))
    overrides = [f"export.{key}={as_yaml(value)}" for key, value in given.items() if value is not None]
    settings = _more_settings(state, asked, source, overrides)
    return _using(asked, [source], luthier("export", source.name, *settings, "--json"))


def _export_folder(state: State, source: Source, form: str) -> Path:
    """Return where a model is exported to that is no run: beside its run, or in a folder of its own below the root."""
    whole = form == "all"
    if source.run is not None and source.path is not None:
        return state.roots.runs / source.run / "export" / (source.path.name if whole else f"{source.path.name}-{form}")
    return state.roots.runs / "exports" / (slug(source.name) if whole else f"{slug(source.name)}-{form}")


def _serve(state: State, asked: NewJob) -> JobSpec:
    (source,) = _sources(state, asked, most=1)
    settings = _more_settings(state, asked, source)
    adapters: list[str] = []
    for name, run in (asked.options.get("adapters") or {}).items():
        if _ADAPTER_NAME.fullmatch(str(name)) is None:
            raise Refused(422, "job_option", f"an adapter's name has letters, digits, dots and dashes; found "
                          f"{printable(name)}", field="options.adapters")  # fmt: skip
        adapters += ["--adapter", f"{name}={_source(state, str(run)).name}"]
    secret = f"lk-{secrets.token_urlsafe(32)}"
    keys = {"keys": {"page": hashlib.sha256(secret.encode()).hexdigest()}}
    own = ("serve.host=127.0.0.1", "serve.api_keys={job}/keys.json", "serve.port={port}")
    spec = _using(asked, [source], luthier("serve", source.name, *settings, *adapters, *own))
    return JobSpec(**{**_fields(spec), "files": {KEY: secret, "keys.json": json.dumps(keys)}})


def _using(asked: NewJob, sources: list[Source], command: tuple[str, ...]) -> JobSpec:
    name = asked.name or ", ".join(each.run or each.name for each in sources)[:200]
    common = {**_common(asked), "name": name}
    return JobSpec(kind=asked.kind, command=command, run=sources[0].run, folder=str(Path.cwd()), **common)


def _fields(spec: JobSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in JobSpec.__dataclass_fields__}


def _sources(state: State, asked: NewJob, most: int = 20) -> list[Source]:
    if not 1 <= len(asked.sources) <= most:
        wanted = "one model" if most == 1 else f"1 to {most} models"
        raise Refused(422, "job_sources", f"{asked.kind} takes {wanted}; found {len(asked.sources)}", field="sources")
    return [_source(state, each) for each in asked.sources]


def _source(state: State, text: str) -> Source:
    """Return a model by the id of its run, a place below the declared folders, an alias, or a name of the hub."""
    runs = state.roots.runs
    if is_one_name(text) and is_run(runs / text):
        found = state.roots.run(text)
        return Source(str(found), text, found)
    if text in ALIASES:
        return Source(text, None, None)
    if _HUB_NAME.fullmatch(text) and not (runs / text).exists() and not Path(text).exists():
        return Source(text, None, None)
    found = state.roots.inside(text, "models")
    if not found.is_dir():
        raise missing("model", text)
    top = found.relative_to(runs).parts[0] if found.is_relative_to(runs) and found != runs else ""
    return Source(str(found), top if is_one_name(top) and is_run(runs / top) else None, found)


def _more_settings(state: State, asked: NewJob, source: Source, overrides: list[str] | None = None) -> list[str]:
    """Return the settings that are given on top of those of a source, as key=value, all of them checked together."""
    run = next((each for each in (source.path, source.path and source.path.parent) if each and is_run(each)), None)
    base = _settings_of(run) if run is not None else {}
    fixed = {"model_name_or_path": source.name, "adapter_name_or_path": [], "create_new_adapter": False}
    base["model"] = {**base.get("model", {}), **fixed}
    given = _read(state, asked, [f"model.model_name_or_path={as_yaml(source.name)}"]) if _says(asked) else None
    nested = {} if given is None else _named(given)
    for section, values in nested.items():
        base[section] = {**base.get(section, {}), **values}
    read_settings(state.roots, values=base, overrides=overrides or [], allow_remote_code=state.allow_remote_code)
    flat = [f"{section}.{key}={as_yaml(value)}" for section, values in nested.items() for key, value in values.items()]
    return [*flat, *(overrides or [])]


def _named(given: Loaded) -> dict[str, dict[str, Any]]:
    """Return what was given by name; the model is the source's."""
    nested = said(given)
    nested.get("model", {}).pop("model_name_or_path", None)
    return {
        section: kept
        for section, values in nested.items()
        if (kept := {key: value for key, value in values.items() if f"{section}.{key}" in given.places})
    }


def _settings_of(run: Path) -> dict[str, Any]:
    found: Any = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


# ---- audit


def _audit(state: State, asked: NewJob) -> JobSpec:
    dataset, folder = str(asked.options.get("dataset") or ""), str(asked.options.get("folder") or "")
    if not dataset:
        raise Refused(422, "job_option", "dataset is required: the data set to look at", field="options.dataset")
    found = find_set(state.roots, dataset, folder)
    rows: Mapping[str, Any] = {"dataset": [found.name if found.entry is not None else str(found.path)],
                               "dataset_dir": str(found.folder), "eval_dataset": [], "val_size": 0}  # fmt: skip
    overrides = [f"data.{key}={as_yaml(value)}" for key, value in rows.items()]
    loaded = _read(state, asked, overrides)
    name = {**_common(asked), "name": asked.name or dataset}
    return JobSpec(
        kind="audit",
        command=luthier("data", "audit", f"{{job}}/{CONFIG}", "--json"),
        files={CONFIG: as_file(said(loaded))},
        folder=str(Path.cwd()),
        **name,
    )


def _says(asked: NewJob) -> bool:
    return bool(asked.values) or bool((asked.yaml or "").strip())


def _read(state: State, asked: NewJob, overrides: list[str] | None = None) -> Loaded:
    return read_settings(
        state.roots,
        yaml=asked.yaml,
        values=asked.values,
        overrides=overrides or [],
        allow_remote_code=state.allow_remote_code,
    )


_BUILDERS: dict[str, Callable[[State, NewJob], JobSpec]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "serve": _serve,
    "audit": _audit,
}
