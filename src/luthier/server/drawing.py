"""How a request wants its answers drawn, as the engine reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.engines.shaping import Shaping
from luthier.server.errors import bad

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.types import Sampling
    from luthier.engines.shaping import Guide
    from luthier.server.fields import Drawn
    from luthier.server.voice import Voice

_SAME_NAME = ("temperature", "top_k", "min_p", "repetition_penalty")
_SMALLEST_SHARE = 1e-9
"""top_p: 0 leaves the most probable token."""


def sampling(body: Drawn, voice: Voice, longest: int, asked: int | None, usual: int) -> Sampling:
    """Return how answers to prompts of at most `longest` tokens are drawn.

    `asked`: most tokens of an answer, as the request says; `usual` where it does not. Raises ApiError when prompt and
    answer do not fit.
    """
    room = voice.context - longest
    if room < 1 or (asked is not None and asked > room):
        wanted = "" if asked is None else f" and {asked} in the answer"
        raise bad(
            f"this model sees at most {voice.context} tokens; {longest + (asked or 1)} were asked for: {longest} in "
            f"the prompt{wanted or ', which leaves none for the answer'}; shorten the prompt or max_tokens",
            _prompt_field(body),
            "context_length_exceeded",
        )
    given = {name: getattr(body, name) for name in _SAME_NAME if getattr(body, name) is not None}
    if body.top_p is not None:
        given["top_p"] = max(body.top_p, _SMALLEST_SHARE)
    if body.stop is not None:
        given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.seed is not None:
        given["sampling_seed"] = body.seed % 2**64
    return replace(voice.how, **given, max_new_tokens=min(room, usual) if asked is None else max(asked, 1))


def _prompt_field(body: Drawn) -> str:
    return "messages" if "messages" in type(body).model_fields else "prompt"


def shaping(body: Drawn, voice: Voice, *, top: int = 0, guide: Callable[[], Guide] | None = None) -> Shaping:
    """Return what else a request asks of the decoder. Raises ApiError for tokens that are not there."""
    biases: dict[int, float] = {int(token): value for token, value in (body.logit_bias or {}).items()}
    check_ids(biases, voice, "logit_bias")
    return Shaping(
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=biases,
        top_logprobs=top,
        guide=guide,
        adapter=voice.adapter,
    )


def check_ids(tokens: Any, voice: Voice, field: str) -> None:
    """Raise ApiError for ids outside the vocabulary."""
    wrong = next((token for token in tokens if token >= voice.vocabulary), None)
    if wrong is not None:
        raise bad(f"{field}: token {wrong} is not among the {voice.vocabulary} of this model", field)
