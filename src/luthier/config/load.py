"""YAML, mapping and key=value -> RunConfig, with the origin of every value and all mistakes reported together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from luthier.config import compat, neighbours
from luthier.config.check import cross_checks
from luthier.config.mistakes import code_of, explain
from luthier.config.schema import SECTIONS, RunConfig
from luthier.config.yaml_file import Place, Tree, parse_scalar, read_yaml
from luthier.core.errors import ConfigError
from luthier.core.log import printable, say_once
from luthier.core.registry import OBJECTIVES, TUNINGS, did_you_mean

SHELVES = {"tuning": (TUNINGS, "lora"), "objective": (OBJECTIVES, "sft")}
"""Section -> its shelf and the name taken when none is given."""


def _inherit_help(schema: dict[str, Any], cls: type) -> None:
    """Take the help of fields that a base class declares from there."""
    for base in cls.__mro__[1:]:
        if is_dataclass(base):
            for key, facts in adapter(base).json_schema().get("properties", {}).items():
                if "description" in facts:
                    schema["properties"][key].setdefault("description", facts["description"])


_STRICT = ConfigDict(
    extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, json_schema_extra=_inherit_help
)
_INPUT_PATHS = (
    ("model", "model_name_or_path"),
    ("model", "adapter_name_or_path"),
    ("model", "new_special_tokens_config"),
    ("data", "dataset"),
    ("data", "eval_dataset"),
    ("data", "dataset_dir"),
    ("rollout", "reward_model"),
    ("rollout", "reward_model_adapters"),
    ("rollout", "critic_model"),
    ("evaluate", "eval_general_dataset"),
    ("evaluate", "task"),
    ("evaluate", "task_dir"),
    ("evaluate", "eval_tasks_dir"),
)
"""Section and key of what is read, never of what is written: these are looked for beside the file, too."""


@dataclass(slots=True)
class Loaded:
    """A resolved configuration and where its values came from."""

    config: RunConfig
    places: dict[str, Place]
    notices: list[str] = field(default_factory=list[str])

    def place(self, key: str) -> str:
        """Return where `section.key` was given, or "default"."""
        return str(self.places.get(key, "default"))


_BUILDING = threading.RLock()
"""One validator at a time: it parses its class's source, and CPython 3.11 counts the depth of that for all threads
together, so that two at once end in SystemError."""


@cache
def adapter(cls: type) -> TypeAdapter[Any]:
    """Return the validator of a settings class."""
    with _BUILDING:
        cls.__pydantic_config__ = _STRICT  # pyright: ignore[reportAttributeAccessIssue]
        return TypeAdapter(cls)


@cache
def homes() -> dict[str, str]:
    """Map each flat key to the section that declares it."""
    return {each.name: section for section, cls in SECTIONS.items() for each in fields(cls)}


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Loaded:
    """Read settings from a YAML file, a run directory or a mapping, then apply `key=value` overrides.

    Raises ConfigError listing every mistake: place, key, value, reason, nearest valid key.
    """
    tree = _read(source)
    other = neighbours.recognize(tree.values or _read_overrides(overrides, []).values, _is_known)
    if other is not None:
        raise ConfigError(
            f"{next(iter(tree.places.values()), Place('command line')).source}: {other}", code="config_other_tool"
        )
    problems, notices = tree.problems, []
    nested, places = _route(tree, problems, notices)
    if tree.folder is not None:
        _look_beside(tree.folder, nested)
    command_line = _read_overrides(overrides, problems)
    over_nested, over_places = _route(command_line, problems, notices)
    for section, values in over_nested.items():
        nested.setdefault(section, {}).update(values)
    places.update(over_places)
    _apply_presets(nested, places, problems, notices)
    config = _build(nested, places, problems, notices)
    if config is not None:
        config = _with_rope_length(config)
        problems += cross_checks(config)
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)), code=code_of(problems))
    assert config is not None
    for notice in dict.fromkeys(notices):
        say_once(notice)
    return Loaded(config, places, notices)


def _with_rope_length(config: RunConfig) -> RunConfig:
    model = config.model
    if model.rope_scaling == "none" or model.rope_length:
        return config
    return replace(config, model=replace(model, rope_length=config.data.cutoff_len))


def dump(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the nested form of `config`, every value included; `load_config` reads it back."""
    nested = {
        section: adapter(cls).dump_python(getattr(config, section), mode="json") for section, cls in SECTIONS.items()
    }
    for section, (shelf, _) in SHELVES.items():
        instance = getattr(config, section)
        values = adapter(type(instance)).dump_python(instance, mode="json")
        nested[section] = {"name": shelf.name_of(instance), **values}
    return nested


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the nested form, for editors and forms."""
    properties = {section: adapter(cls).json_schema() for section, cls in SECTIONS.items()}
    for section, (shelf, default) in SHELVES.items():
        choices = []
        for name, cls in shelf.items():
            schema = adapter(cls).json_schema()
            schema.setdefault("properties", {})["name"] = {"const": name}
            choices.append(schema)
        properties[section] = {"oneOf": choices, "default": {"name": default}}
    return {"type": "object", "properties": properties, "required": ["model"], "additionalProperties": False}


def _read(source: str | Path | Mapping[str, Any]) -> Tree:
    if isinstance(source, Mapping):
        places = {str(key): Place("given") for key in source}
        return Tree(values=dict(source), places=places)
    path = Path(source).expanduser()
    if (path / "config.yaml").is_file():
        path = path / "config.yaml"
    return read_yaml(path)


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> Tree:
    tree = Tree()
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.removeprefix("--").strip()
        if not equals or not key:
            problems.append(f"command line: {printable(text)} is not of the form key=value")
            continue
        if key in tree.values:
            problems.append(f"command line: {key} is given twice")
        tree.values[key] = parse_scalar(value, "command line")
        tree.places[key] = Place("command line")
    return tree


def _route(tree: Tree, problems: list[str], notices: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Place]]:
    """Sort flat and nested keys into sections."""
    nested: dict[str, dict[str, Any]] = {}
    places: dict[str, Place] = {}

    def put(dotted: str, value: Any, place: Place) -> None:
        section, _, key = dotted.partition(".")
        before = nested.setdefault(section, {}).get(key)
        if key in nested[section] and (dotted not in compat.YIELDS or compat.YIELDS[dotted] not in (before, value)):
            problems.append(_twice(dotted, place, places.get(dotted)))
            return
        if key in nested[section] and value == compat.YIELDS[dotted]:
            return
        values = compat.VALUES.get(dotted, {})
        if _hashable(value) and value in values:
            nested[section][key] = values[value]
            if value in compat.SAID.get(dotted, {}):
                notices.append(f"{place}: {value} is read as {values[value]}: {compat.SAID[dotted][value]}")
        else:
            nested[section][key] = value
        places[dotted] = place

    for key, value in tree.values.items():
        place = tree.places.get(key, Place("given"))
        section, dot, _ = key.partition(".")
        if dot and (section in SECTIONS or section in SHELVES):
            put(key, value, place)
        elif (key in SECTIONS or key in SHELVES) and isinstance(value, dict):
            for inner, inner_value in value.items():
                put(f"{key}.{inner}", inner_value, tree.places.get(f"{key}.{inner}", place))
        elif key in SHELVES and isinstance(value, str):
            put(f"{key}.name", value, place)
        elif key in SECTIONS or key in SHELVES:
            problems.append(f"{place}: {key} is a section: expected `key: value` lines, found {printable(value)}")
        else:
            _route_flat(key, value, place, put, problems, notices)
    return nested, places


def _twice(dotted: str, place: Place, first: Place | None) -> str:
    """Say that two keys set the same, by the names that were written."""
    _, _, plain = dotted.partition(".")
    now, before = place.key or plain, (first.key if first is not None else "") or plain
    if now == before:
        return f"{place}: {dotted} is given twice, first at {first or 'the command line'}"
    return f"{place}: {now} and {before} ({first or 'the command line'}) both set {dotted}; keep one"


def _apply_presets(
    nested: dict[str, dict[str, Any]], places: dict[str, Place], problems: list[str], notices: list[str]
) -> None:
    """Let words that stand for other settings become those, and words for several set what is not named."""

    def given(dotted: str) -> Any:
        section, _, key = dotted.partition(".")
        return nested.get(section, {}).get(key)

    for dotted, known in compat.WORDS.items():
        if given(dotted) not in (None, *known):
            place = places.get(dotted, Place("given"))
            expected = " or ".join(map(str, known))
            problems.append(f"{place}: {place.key or dotted}: expected {expected}, found {printable(given(dotted))}")
    for conditions, settings in compat.BECOMES:
        if all(given(dotted) == value for dotted, value in conditions.items()):
            for dotted in conditions:
                section, _, key = dotted.partition(".")
                del nested[section][key]
            for dotted, value in settings.items():
                section, _, key = dotted.partition(".")
                if nested[section].get(key, value) != value:
                    reason = " and ".join(places[each].key or each for each in conditions)
                    notices.append(f"{places[dotted]}: {key} is left out: {reason} decides")
                nested[section][key] = value
                places[dotted] = places[next(iter(conditions))]
    for conditions, settings in compat.PRESETS:
        if all(given(dotted) == value for dotted, value in conditions.items()):
            for dotted, value in settings.items():
                section, _, key = dotted.partition(".")
                if nested.setdefault(section, {}).setdefault(key, value) == value:
                    places.setdefault(dotted, places.get(next(iter(conditions)), Place("given")))
    for conditions, dotted, other in compat.TAKES:
        if given(other) is not None and all(given(each) == value for each, value in conditions.items()):
            section, _, key = dotted.partition(".")
            if nested.setdefault(section, {}).setdefault(key, given(other)) is given(other):
                places.setdefault(dotted, places[other])
    for dotted, meanings in compat.MEANS.items():
        if _hashable(given(dotted)) and given(dotted) in meanings:
            section, _, key = dotted.partition(".")
            nested[section][key] = meanings[given(dotted)]
    for dotted in compat.WORDS:
        section, _, key = dotted.partition(".")
        nested.get(section, {}).pop(key, None)


def _look_beside(folder: Path, nested: dict[str, dict[str, Any]]) -> None:
    """Complete relative paths that lead nowhere from here but somewhere from the folder of the settings file."""

    def complete(value: Any) -> Any:
        if not isinstance(value, str) or Path(value).expanduser().exists() or not (folder / value).exists():
            return value
        return str(folder / value)

    for section, key in _INPUT_PATHS:
        values = nested.get(section, {})
        if isinstance(values.get(key), list):
            values[key] = [complete(value) for value in values[key]]
        elif isinstance(values.get(key), str):
            values[key] = ",".join(complete(part.strip()) for part in values[key].split(","))
    rollout = nested.get("rollout", {})
    if isinstance(rollout.get("rewards"), list):
        rollout["rewards"] = [_named_beside(part, complete) for part in rollout["rewards"]]
    if "environment" in rollout:
        rollout["environment"] = _named_beside(rollout["environment"], complete)


def _named_beside(part: Any, complete: Callable[[Any], Any]) -> Any:
    """Complete the path in FILE.py:attribute, where a part of the shelves is named so."""
    name = part.get("name") if isinstance(part, dict) else part
    file, colon, attribute = str(name).rpartition(":")
    if not colon or not file.endswith(".py"):
        return part
    found = f"{complete(file)}:{attribute}"
    return {**part, "name": found} if isinstance(part, dict) else found


def _is_known(key: str) -> bool:
    section = key.partition(".")[0]
    return key in homes() or compat.has_word_on(key) or section in SECTIONS or section in SHELVES


def _hashable(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def _route_flat(key: str, value: Any, place: Place, put: Any, problems: list[str], notices: list[str]) -> None:
    if key in homes():
        if value is not None or _default_of(key) is None or value in compat.VALUES.get(f"{homes()[key]}.{key}", {}):
            put(f"{homes()[key]}.{key}", value, place)
    elif key in compat.RENAMED:
        if value is not None or key == "resume_from_checkpoint":
            put(compat.RENAMED[key], value, replace(place, key=key))
    elif key in compat.SWITCHES:
        dotted, setting = compat.SWITCHES[key]
        if not isinstance(value, bool | None):
            problems.append(f"{place}: {key}: expected true or false, found {printable(value)}")
        elif value:
            put(dotted, setting, replace(place, key=key))
    elif key in compat.IGNORED:
        notices.append(f"{place}: {key} is left out: {compat.IGNORED[key]}")
    elif (reason := compat.refusal(key, value)) is not None:
        problems.append(f"{place}: {key} is not supported: {reason}")
    elif key not in compat.REFUSED and key not in compat.ONLY:
        known = sorted({*homes(), *compat.RENAMED, *compat.SWITCHES, *SECTIONS, *SHELVES})
        hint = neighbours.hint(key) or did_you_mean(key, known)
        problems.append(
            f"{place}: unknown key {printable(key)} (value {printable(value)}){hint or '; see `luthier explain`'}"
        )


def _default_of(key: str) -> Any:
    declared = next(each for each in fields(SECTIONS[homes()[key]]) if each.name == key)
    return declared.default if declared.default is not MISSING else ""


def _build(
    nested: dict[str, dict[str, Any]], places: dict[str, Place], problems: list[str], notices: list[str]
) -> RunConfig | None:
    built: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        built[section] = _validate(section, cls, nested.get(section, {}), places, problems)
    for section, (shelf, default) in SHELVES.items():
        values = dict(nested.get(section, {}))
        name = values.pop("name", default)
        try:
            cls = shelf.get(str(name))
        except ConfigError as error:
            problems.append(f"{places.get(f'{section}.name', 'default')}: {error}")
            continue
        _leave_out_foreign(section, cls, values, places, notices)
        built[section] = _validate(section, cls, values, places, problems)
    complete = len(built) == len(SECTIONS) + len(SHELVES) and all(value is not None for value in built.values())
    return RunConfig(**built) if complete else None


def _leave_out_foreign(
    section: str, chosen: type, values: dict[str, Any], places: dict[str, Place], notices: list[str]
) -> None:
    """Drop flat keys that belong to another thing of the shelf, such as lora_rank beside finetuning_type: full."""
    known = {each.name for each in fields(chosen)}
    elsewhere = {each.name for _, cls in SHELVES[section][0].items() for each in fields(cls)} - known
    for key in elsewhere & values.keys():
        place = places.get(f"{section}.{key}", Place("given"))
        if place.key:
            del values[key], places[f"{section}.{key}"]
            notices.append(f"{place}: {place.key} is left out: {section} {chosen.__name__.lower()} has no such setting")


def _validate(section: str, cls: type, values: dict[str, Any], places: dict[str, Place], problems: list[str]) -> Any:
    try:
        return adapter(cls).validate_python(values)
    except ValidationError as error:
        known = [each.name for each in fields(cls)]
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else ""
            problems.append(explain(section, key, dict(problem), known, places, [*homes()]))
        return None
