"""Texts and token ids of a request -> prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.server.drawing import check_ids
from luthier.server.errors import bad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.server.voice import Voice


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt and its text."""

    ids: list[int]
    text: str


def read_prompts(given: str | Sequence[Any], voice: Voice, field: str) -> list[TextPrompt]:
    """Return the prompts of a request: a text, texts, ids, or lists of ids. Raises ApiError for what is no prompt."""
    many: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    return [_read(each, voice, field if len(many) == 1 else f"{field}[{place}]") for place, each in enumerate(many)]


def _read(prompt: str | Sequence[int], voice: Voice, field: str) -> TextPrompt:
    tokenizer = voice.served.tokenizer
    if isinstance(prompt, str):
        voice.check_length(len(prompt), field)
        # A text that brings its begin token gets no second one.
        begins = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
        found = TextPrompt(tokenizer(prompt, add_special_tokens=not begins)["input_ids"], prompt)
    else:
        check_ids(prompt, voice, field)
        found = TextPrompt(list(prompt), tokenizer.decode(prompt, skip_special_tokens=False))
    if not found.ids:
        raise bad(f"{field}: there is nothing to go on with; an empty text has no tokens", field)
    if len(found.ids) > voice.context:
        raise bad(
            f"this model sees at most {voice.context} tokens; {field} has {len(found.ids)}; shorten it",
            field,
            "context_length_exceeded",
        )
    return found
