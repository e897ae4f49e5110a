"""Models to begin with, and models that answer."""

from typing import Literal

from pydantic import Field

from luthier.server.ui.said import Said
from luthier.server.ui.shapes.common import Asked, Shape


class ModelRow(Shape):
    """A model that can be chosen."""

    name: str
    """As `model.model_name_or_path` takes it."""
    kind: Literal["alias", "folder", "cached", "run"]
    about: Said = ""
    licence: str = ""
    here: bool
    """Whether its files are on this machine."""
    architecture: str = ""
    parameters: int | None = None
    bytes: int | None = None
    has_template: bool | None = None
    safetensors: bool | None = None
    fits: bool | None = None
    """Whether a LoRA training of it fits into this machine's memory, roughly; null: not known."""
    problem: Said = ""
    """Why it cannot be used."""


class Models(Shape):
    """All of them, and a look at one."""

    models: list[ModelRow]


class Serving(Shape):
    """A model that answers, in a process of its own."""

    job: str
    name: str
    state: Literal["starting", "ready", "failed", "stopped"]
    models: list[str]
    """What it answers as: the base model first, then adapters."""
    doing: Said = ""
    context: int | None = None
    curl: str = ""
    """A command that asks it the same, past this page."""
    problem: Said = ""


class Servings(Shape):
    """All of them."""

    servings: list[Serving]


class TemplateFit(Shape):
    """Chat templates for a model."""

    own: bool
    """Its tokenizer brings one."""
    fitting: list[str]
    """Names of those that its family is used with."""


class Turn(Asked):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=1_000_000)


class PromptAsked(Asked):
    """A conversation whose exact tokens to show."""

    messages: list[Turn] = Field(max_length=1000)
    model: str = ""
    """Of several that are served, which; the first one by default."""
