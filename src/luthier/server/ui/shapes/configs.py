"""Settings: the form, the check, the estimate."""

from typing import Any, Literal

from luthier.server.ui.said import Said
from luthier.server.ui.shapes.common import Asked, Problem, Shape, Values


class FormField(Shape):
    """One setting of the form."""

    key: str
    """section.key"""
    label: str
    help: str
    kind: Literal["text", "number", "integer", "flag", "choice", "names", "numbers", "mapping"]
    choices: list[str] = []
    least: float | None = None
    most: float | None = None
    open_least: bool = False
    """The least value itself is not allowed."""
    open_most: bool = False
    optional: bool = False
    """null is a value."""
    default: Any = None
    basic: bool = False
    """Shown before "all settings" is opened."""
    group: str
    """Heading under which it stands, a key of Form.groups."""
    only: list[str] = []
    """Names of the shelf (tunings, objectives) that have this field; empty where every one has."""


class Option(Shape):
    """One name on a shelf."""

    name: str
    help: str
    goal: str = ""
    """Of an objective, what a person wants: teach, continue, prefer, reward, judge."""
    needs: list[str] = []
    """What its rows hold: conversation, text, pair, tagged, prompt."""
    refused: dict[str, Said] = {}
    """section.name of another shelf (tuning.lora) -> why the two do not go together."""


class Form(Shape):
    """All settings, their help in the language that was asked for, and the shelves."""

    fields: list[FormField]
    groups: dict[str, str]
    objectives: list[Option]
    tunings: list[Option]
    templates: list[str]
    formats: list[str]


class ConfigText(Asked):
    """Settings to look at: either YAML as it is pasted, or values of the form."""

    yaml: str | None = None
    values: Values | None = None
    overrides: list[str] = []
    """key=value, applied last."""


class ConfigLook(Shape):
    """What became of settings. Nothing was written."""

    ok: bool
    problems: list[Problem]
    notices: list[Said] = []
    """What was translated or left out, one line each."""
    values: Values = {}
    """What was given, in the nested form; empty where it could not be read."""
    resolved: Values = {}
    """Every setting; empty where there are problems."""
    places: dict[str, str] = {}
    """section.key -> where its value comes from: default, preset, or the place in the text."""
    yaml: str = ""
    """The shortest file that means the same."""
    command: str = ""
    """The command line that does the same, to be pasted into a shell."""


class Preset(Shape):
    """A start that fits this machine."""

    name: Literal["try", "balanced", "careful"]
    about: str
    values: Values


class EstimatePart(Shape):
    """One part of the memory."""

    name: Said
    bytes: int


class Estimate(Shape):
    """What a training would take."""

    peak_bytes: int
    available_bytes: int
    fits: bool
    parts: list[EstimatePart]
    seconds: float | None
    """Of the whole training, as far as it can be told."""
    steps: int | None
    tokens: int | None
    disk_bytes: int | None
    lines: list[Said]
    """What the numbers rest on."""
    remedies: list[Said] = []
    """Where it does not fit: the nearest settings that do."""
