"""Talk to a model, or to base and tuned model side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.core.types import Message
from luthier.workflows.build import Speaker, load_base_speaker, load_speaker

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

    def use(self, adapter: str) -> None:
        """Go on with another adapter. Raises ModelError naming those that are there."""
        self.speaker.use(adapter)

    def forget(self) -> None:
        """Begin anew."""
        self.messages.clear()


def open_conversations(config: RunConfig, *, compare: bool) -> list[Conversation]:
    """Load the model and, to compare, the base that it was made from. Raises ModelError when there is no base."""
    name = config.model.model_name_or_path
    tuned = Conversation(name, load_speaker(config))
    return [Conversation("base", load_base_speaker(config)), tuned] if compare else [tuned]
