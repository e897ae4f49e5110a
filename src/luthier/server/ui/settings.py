"""Settings that came over the wire: read like those of the command line, and held to what the page may do.

Code is run and files are read only as far as the command line of the server allows: shelves are not asked for modules,
and paths lie below the declared folders.
"""

from __future__ import annotations

import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import compat
from luthier.config.load import SHELVES, Loaded, homes, json_schema, load_config
from luthier.config.yaml_file import LARGEST_FILE_BYTES, parse_yaml
from luthier.core.errors import ConfigError
from luthier.core.log import printable
from luthier.server.ui.failures import Mistaken
from luthier.server.ui.shapes.common import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from luthier.config.schema import RunConfig
    from luthier.server.ui.roots import Roots, Which

NAME = "settings.yaml"
"""What pasted text is called in messages."""
_READ: tuple[Which, ...] = ("data", "runs", "models")
PATHS: dict[str, tuple[Which, ...]] = {
    "model.model_name_or_path": ("models",),
    "model.adapter_name_or_path": ("models",),
    "model.more_adapters": ("models",),
    "model.ref_model": ("models",),
    "model.ref_model_adapters": ("models",),
    "rollout.reward_model": ("models",),
    "rollout.reward_model_adapters": ("models",),
    "rollout.critic_model": ("models",),
    "data.dataset": ("data",),
    "data.eval_dataset": ("data",),
    "data.dataset_dir": ("data",),
    "data.tokenized_path": ("runs",),
    "train.output_dir": ("runs",),
    "train.offload_dir": ("runs",),
    "train.swanlab_logdir": ("runs",),
    "train.resume": ("runs",),
    "evaluate.eval_general_dataset": ("data",),
    "evaluate.task": ("data",),
    "evaluate.task_dir": ("data",),
    "evaluate.eval_tasks_dir": ("data",),
    "export.export_dir": ("runs",),
    "export.export_imatrix": _READ,
    "serve.api_keys": ("runs",),
}
"""Settings that may be paths -> the folders below which they may lead."""
_REMOTE = "is code that would run here; `luthier ui --allow-remote-code` lets the page name code"
_PLACE = re.compile(rf"^({re.escape(NAME)}(?::\d+)?|given|command line|settings|default|follows from the others): ")
_WORD = re.compile(r"[A-Za-z_][\w.]*")
_WORDS_LOOKED_AT = 8


def read_settings(
    roots: Roots,
    *,
    yaml: str | None = None,
    values: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    allow_remote_code: bool = False,
) -> Loaded:
    """Read settings from text or from values, then apply `overrides`. Raises Mistaken with all mistakes."""
    if (yaml is None) == (values is None):
        raise Mistaken([Problem(code="config", message="settings come either as yaml or as values")])
    try:
        raw = parse_yaml(_checked(yaml), NAME).values if yaml is not None else dict(values or {})
        code = [] if allow_remote_code else list(_named_code(raw, overrides))
        if code:
            raise Mistaken(code)
        loaded = _load_text(yaml, overrides) if yaml is not None else load_config(raw, overrides)
    except Mistaken:
        raise
    except ConfigError as error:
        raise Mistaken([problem_of(line, error.code) for line in str(error).splitlines()]) from error
    found = [*_foreign_paths(loaded.config, roots), *([] if allow_remote_code else _code_of(loaded.config))]
    if found:
        raise Mistaken(found)
    return loaded


def problem_of(line: str, code: str) -> Problem:
    """Return a line of what is wrong with settings as a record: the place and the setting that it begins with.

    >>> problem_of("settings.yaml:7: learning_rate: expected a number, found text 'x'", "config").field
    'train.learning_rate'
    """
    match = _PLACE.match(line)
    place, rest = (match[1], line[match.end() :]) if match else (None, line)
    words = _WORD.findall(rest)[:_WORDS_LOOKED_AT]
    found = (dotted_of(word.rstrip("."), is_first=place == 0) for place, word in enumerate(words))
    field = next(filter(None, found), None)
    code = "config_unknown_key" if rest.startswith("unknown key") else code
    return Problem(code=code, message=rest, field=field, place=place if place and ":" in place else None)


def dotted_of(key: str, *, is_first: bool = True) -> str | None:
    """Return section.key for any spelling of a setting; None for what is no setting.

    Keys of shelves are ordinary words (init, text), so that by themselves they count only in the first place.

    >>> dotted_of("lora_rank"), dotted_of("tuning.rank"), dotted_of("cutoff_len"), dotted_of("nothing")
    ('tuning.rank', 'tuning.rank', 'data.cutoff_len', None)
    """
    if key in homes():
        return f"{homes()[key]}.{key}"
    if key in compat.RENAMED:
        return compat.RENAMED[key]
    if key in _dotted():
        return key
    on_shelf = [f"{section}.{key}" for section in SHELVES if f"{section}.{key}" in _dotted()]
    return on_shelf[0] if is_first and on_shelf else None


@cache
def _dotted() -> frozenset[str]:
    found: set[str] = set()
    for section, schema in json_schema()["properties"].items():
        for each in schema.get("oneOf", [schema]):
            found |= {f"{section}.{key}" for key in each.get("properties", {})}
    return frozenset(found)


def _checked(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_FILE_BYTES:
        raise ConfigError(f"{NAME} is larger than {LARGEST_FILE_BYTES} bytes; settings are a page of text")
    return text.encode("utf-8", "replace").decode()


def _load_text(text: str, overrides: Sequence[str]) -> Loaded:
    """Read text as the file that it would be, and name it NAME wherever the file is named."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_text(_checked(text), encoding="utf-8")
        try:
            loaded = load_config(path, overrides)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(path), NAME), code=error.code) from error
        for dotted, place in loaded.places.items():
            if place.source == str(path):
                loaded.places[dotted] = type(place)(NAME, place.line, place.key)
        loaded.notices = [notice.replace(str(path), NAME) for notice in loaded.notices]
        return loaded


def _named_code(raw: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[Problem]:
    """Yield what would import a module while settings are read: names of shelves of the form module:attribute."""
    given = list(raw.items()) + [(key.removeprefix("--").strip(), value) for key, _, value in
                                 (text.partition("=") for text in overrides)]  # fmt: skip
    for section in (*SHELVES, "model"):
        inner = raw.get(section)
        given += [(f"{section}.{key}", value) for key, value in inner.items()] if isinstance(inner, dict) else []
    for key, value in given:
        dotted = compat.RENAMED.get(str(key), str(key))
        if dotted.removeprefix("model.") == "new_special_tokens_config" and isinstance(value, str):
            yield Problem(code="path_outside", message=f"{key}: give the words themselves, not a file", field=dotted)
        if dotted.removesuffix(".name") in SHELVES and isinstance(value, str) and ":" in value:
            yield Problem(code="remote_code", message=f"{key}: {printable(value)} {_REMOTE}", field=dotted)


def _code_of(config: RunConfig) -> Iterator[Problem]:
    """Yield settings that bring code of their own."""
    if config.model.allow_remote_code:
        yield Problem(code="remote_code", message=f"allow_remote_code: true {_REMOTE}", field="model.allow_remote_code")
    for key, parts in (("rewards", config.rollout.rewards), ("environment", [config.rollout.environment])):
        for part in parts:
            name = str(part.get("name", "") if isinstance(part, dict) else getattr(part, "name", part) or "")
            if ":" in name:
                yield Problem(code="remote_code", message=f"{key}: {printable(name)} {_REMOTE}", field=f"rollout.{key}")


def _foreign_paths(config: RunConfig, roots: Roots) -> Iterator[Problem]:
    for dotted, kinds in PATHS.items():
        section, _, key = dotted.partition(".")
        value = getattr(getattr(config, section), key)
        if key == "dataset_dir" and not (config.data.dataset or config.data.eval_dataset):
            continue
        for each in _texts(value):
            if _leads_out(each, kinds, roots):
                folders = ", ".join(str(root) for kind in kinds for root in roots.of(kind))
                remedy = " or ".join(f"--{kind}" for kind in kinds)
                message = (
                    f"{key}: {printable(each)} is not below the folders that this page may use: {folders}; "
                    f"put it there, or start `luthier ui` with its folder ({remedy})"
                )
                yield Problem(code="path_outside", message=message, field=dotted)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [each for inner in value.values() for each in _texts(inner)]
    if isinstance(value, list | tuple):
        return [each for inner in value for each in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _leads_out(text: str, kinds: Sequence[Which], roots: Roots) -> bool:
    """Tell whether a text is a path, and one that leads out; names of the hub and of the shelves are none."""
    path = Path(os.path.expanduser(text)) if "\0" not in text else Path("/\ufffd")
    try:
        is_path = path.is_absolute() or ".." in path.parts or path.exists()
        found = path.resolve()
    except (OSError, RuntimeError, ValueError):
        return True
    return is_path and not any(found.is_relative_to(root) for kind in kinds for root in roots.of(kind))
