"""Talk to a model, or to base and tuned model side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from luthier.core.errors import ModelError
from luthier.core.types import Message
from luthier.models.load import resolve
from luthier.runs.store import is_run
from luthier.workflows.build import Speaker, load_speaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.config.schema import RunConfig


@dataclass(slots=True)
class Conversation:
    """One conversation with one model."""

    name: str
    speaker: Speaker
    messages: list[Message] = field(default_factory=list[Message])

    def reply(self, text: str) -> Iterator[str]:
        """Yield the answer to `text` as it grows and remember both."""
        self.messages.append(Message(role="user", content=text))
        parts: list[str] = []
        prompt = self.speaker.template.prompt(self.messages)
        for part in self.speaker.engine.stream(prompt, self.speaker.how):
            parts.append(part)
            yield part
        self.messages.append(Message(role="assistant", content="".join(parts)))

    def forget(self) -> None:
        """Begin anew."""
        self.messages.clear()


def open_conversations(config: RunConfig, *, compare: bool) -> list[Conversation]:
    """Load the model and, to compare, the base that it was made from. Raises ModelError when there is no base."""
    name = config.model.model_name_or_path
    tuned = Conversation(name, load_speaker(config))
    return [Conversation("base", _base_speaker(config)), tuned] if compare else [tuned]


def _base_speaker(config: RunConfig) -> Speaker:
    name = config.model.model_name_or_path
    if config.model.adapter_name_or_path is not None or resolve(name).adapter is not None:
        return load_speaker(config, with_adapter=False)
    base = base_of_run(name)
    if base is None:
        raise ModelError(f"{name} is no run directory and no adapter, so there is no base to compare it with")
    return load_speaker(replace(config, model=replace(config.model, model_name_or_path=base)))


def base_of_run(name: str) -> str | None:
    """Return the model that a run was started from."""
    for folder in (Path(name).expanduser(), Path(name).expanduser().parent):
        if is_run(folder):
            return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]["model_name_or_path"]
    return None
