"""The form: every setting with its kind, limits and help, made from the declarations; and the shelves."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from luthier.config.combinations import QUANTIZATIONS, why_not
from luthier.config.load import SHELVES, adapter, json_schema
from luthier.core.registry import FORMATS, OBJECTIVES, TUNINGS
from luthier.data.template_names import NAMES
from luthier.server.ui.groups import BASIC, GROUPS, group_of
from luthier.server.ui.said import Language  # noqa: TC001  FastAPI reads it at run time
from luthier.server.ui.shapes.configs import Form, FormField, Option

if TYPE_CHECKING:
    from luthier.server.ui.state import State

_GOALS = {"text": "continue", "answer": "teach", "pair": "prefer", "tagged": "prefer", "prompt": "reward"}
_HOLDS = {"answer": "conversation"}
"""What rows hold, where the form has another word for it."""
_LIMITS = {"minimum": ("least", {}), "exclusiveMinimum": ("least", {"open_least": True}),
           "maximum": ("most", {}), "exclusiveMaximum": ("most", {"open_most": True})}  # fmt: skip
_KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "flag", "object": "mapping"}
_LISTS = {"string": "names", "number": "numbers", "integer": "numbers"}


@cache
def words(language: Language) -> dict[str, Any]:
    """Return what the form says in a language other than that of the declarations."""
    text = files("luthier.server.ui").joinpath("words", f"{language}.json").read_text(encoding="utf-8")
    return json.loads(text)


@cache
def form(language: Language) -> Form:
    """Return the form, its words in a language."""
    fields = [_field(section, key, facts, names, language) for section, key, facts, names in declarations()]
    return Form(
        fields=fields,
        groups=GROUPS if language == "en" else words(language)["groups"],
        objectives=[_objective(name, cls, language) for name, cls in OBJECTIVES.items()],
        tunings=[_tuning(name, cls, language) for name, cls in TUNINGS.items()],
        templates=sorted(NAMES),
        formats=["auto", *FORMATS.names()],
    )


def declarations() -> list[tuple[str, str, dict[str, Any], tuple[str, ...]]]:
    """Return section, key and JSON schema of every setting, and the names on the shelf that have it so.

    A key that means different things to several of them, or has another default, stands here once for each.
    """
    found: dict[tuple[str, str, str], tuple[dict[str, Any], list[str]]] = {}
    for section, schema in json_schema()["properties"].items():
        for each in schema.get("oneOf", [schema]):
            name = each["properties"].get("name", {}).get("const") if section in SHELVES else None
            required = each.get("required", ())
            for key, facts in each["properties"].items():
                if name is not None and key == "name":
                    continue
                facts = {**facts, "needed": key in required}
                spelled = json.dumps(facts, sort_keys=True)
                found.setdefault((section, key, spelled), (facts, []))[1].extend([name] if name else [])
    return [(section, key, facts, tuple(names)) for (section, key, _), (facts, names) in found.items()]


def words_of(section: str, key: str, names: tuple[str, ...], language: Language) -> list[str]:
    """Return label and help of a setting: those of the thing on the shelf where it has its own. Raises KeyError."""
    settings = words(language)["settings"]
    own = [f"{section}.{name}.{key}" for name in names]
    return settings[next((spelled for spelled in own if spelled in settings), f"{section}.{key}")]


def _field(section: str, key: str, facts: dict[str, Any], names: tuple[str, ...], language: Language) -> FormField:
    label, said = key.replace("_", " ").capitalize(), " ".join(facts.get("description", "").split())
    if language != "en":
        with suppress(KeyError):  # a setting of a plug-in
            label, said = words_of(section, key, names, language)
    dotted = f"{section}.{key}"
    return FormField(
        key=dotted,
        label=label,
        help=said,
        default=facts.get("default"),
        basic=dotted in BASIC,
        group=group_of(section, key),
        only=list(names),
        **_shape(facts),
    )


def _shape(facts: dict[str, Any]) -> dict[str, Any]:
    """Return kind, limits and choices of a JSON schema."""
    several = facts.get("anyOf", [])
    if several:
        inner = [each for each in several if each.get("type") != "null"]
        optional = len(inner) < len(several)
        choices = [each for each in inner if "enum" in each or each.get("type") == "boolean"]
        if len(choices) == len(inner) > 1:
            return {"kind": "choice", "choices": [*_choices(choices)], "optional": optional}
        return {**_shape(inner[0]), "optional": optional}
    if "enum" in facts:
        return {"kind": "choice", "choices": [str(each) for each in facts["enum"]]}
    if facts.get("type") == "array":
        return {"kind": _LISTS.get(facts.get("items", {}).get("type", ""), "mapping")}
    shape: dict[str, Any] = {"kind": _KINDS.get(facts.get("type", ""), "mapping")}
    for limit, (field, more) in _LIMITS.items():
        if limit in facts:
            shape |= {field: facts[limit], **more}
    return shape


def _choices(parts: list[dict[str, Any]]) -> list[str]:
    return [choice for part in parts for choice in map(str, part.get("enum", ["true", "false"]))]


def _about(shelf: str, name: str, cls: type, language: Language) -> str:
    if language != "en" and name in words(language)[shelf]:
        return words(language)[shelf][name]
    return str(adapter(cls).json_schema().get("description", "")).partition("\n")[0]


def _objective(name: str, cls: Any, language: Language) -> Option:
    instance = cls()
    goal = "judge" if "value" in instance.reads and cls.rows == "pair" else _GOALS[cls.rows]
    return Option(
        name=name,
        help=_about("objectives", name, cls, language),
        goal="reward" if "rollouts" in instance.needs else goal,
        needs=[_HOLDS.get(cls.rows, cls.rows)],
    )


def _tuning(name: str, cls: Any, language: Language) -> Option:
    refused = {f"quantization.{each}": why for each in QUANTIZATIONS if (why := why_not(name, each))}
    return Option(name=name, help=_about("tunings", name, cls, language), refused=refused)


def routes(state: State) -> APIRouter:
    """Show the form."""
    router = APIRouter(tags=["configs"])

    @router.get("/form", summary="Every setting and the shelves")
    def show(language: Language = "en") -> Form:
        state.expect_questions()
        return form(language)

    return router
