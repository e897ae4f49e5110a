"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from luthier.engines.shaping import ScoredToken
from luthier.server.alone import compute
from luthier.server.drawing import sampling, shaping
from luthier.server.errors import bad
from luthier.server.fields import ignored_header
from luthier.server.job import Job, Work
from luthier.server.prompts import TextPrompt, read_prompts
from luthier.server.replies import TextChoice, TextLogprobs, TextReply, Usage
from luthier.server.requests import CompletionRequest
from luthier.server.stream import ALIVE, EventStream, event
from luthier.server.tokens import Place
from luthier.server.voice import Voice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

    from luthier.engines.shaping import Piece
    from luthier.server.service import Service

USUAL_TOKENS = 16
"""Length of an answer where the request says nothing, as in OpenAI's API."""


@dataclass(slots=True)
class _Choice:
    """One answer to one prompt, as far as it is known."""

    text: str = ""
    place: Place = field(default_factory=Place)
    """Where its next token begins."""
    tokens: list[ScoredToken | int] = field(default_factory=list["ScoredToken | int"])
    finish_reason: Any = "length"


@dataclass(slots=True)
class _Completion:
    """A request that has been read."""

    body: CompletionRequest
    voice: Voice
    prompts: list[TextPrompt]
    work: Work
    choices: list[_Choice]
    scores: list[list[ScoredToken]] = field(default_factory=list["list[ScoredToken]"])
    """Tokens of the prompts, where the request asks for them."""
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def only_scores(self) -> bool:
        """Tell whether no answer is asked for."""
        return self.body.max_tokens == 0

    def echoed(self, number: int) -> tuple[str, list[ScoredToken | int]]:
        """Return what stands in front of an answer: nothing, or its prompt."""
        if not self.body.echo:
            return "", []
        place = number // self.work.n
        # Nothing stands in front of the first token, so there is no probability of it.
        scored: list[ScoredToken | int] = list(self.scores[place][1:]) if self.scores else []
        return self.prompts[place].text, [self.prompts[place].ids[0], *scored] if self.scores else []

    def heard(self, number: int, piece: Piece) -> tuple[str, TextLogprobs | None]:
        """Note a piece; return its text and log-probabilities."""
        choice = self.choices[number]
        if piece.finish_reason is not None:
            choice.finish_reason = piece.finish_reason
        return self.said(choice, piece.text, piece.tokens)

    def said(self, choice: _Choice, text: str, tokens: Sequence[ScoredToken | int]) -> tuple[str, TextLogprobs | None]:
        """Return text and the log-probabilities of its tokens, at its place behind what was said before."""
        top = self.body.logprobs
        found = None if top is None else self.voice.texts.column(tokens, choice.place, top=top > 0)
        return text, found


def _read(body: CompletionRequest, voice: Voice, client: str) -> _Completion:
    """Turn a request into work. Raises ApiError."""
    if body.max_tokens == 0 and not body.echo:
        raise bad("max_tokens: 0 asks for nothing; send echo: true with it, or at least 1", "max_tokens")
    prompts = read_prompts(body.prompt, voice, "prompt")
    longest = max(len(prompt.ids) for prompt in prompts)
    how = sampling(body, voice, longest, body.max_tokens, USUAL_TOKENS)
    shape = shaping(body, voice, top=body.logprobs or 0)
    work = Work(prompts=[prompt.ids for prompt in prompts], how=how, shaping=shape, n=body.n or 1, client=client)
    return _Completion(body, voice, prompts, work, [_Choice() for _ in range(len(prompts) * work.n)])


async def answer_completion(service: Service, body: CompletionRequest, request: Request) -> Any:
    """Go on with texts, at once or as it grows."""
    voice = service.voice(body.model)
    found = await service.read(_read, body, voice, service.client(request, body.user))
    if body.echo and body.logprobs is not None:
        score = partial(voice.served.engine.score, top=body.logprobs, adapter=voice.adapter)
        found.scores = await compute(service, request, found.work.prompts, score, "prompt")
    headers = ignored_header(body)
    if found.only_scores:
        taken = sum(len(prompt) for prompt in found.work.prompts)
        usage = Usage(prompt_tokens=taken, completion_tokens=0, total_tokens=taken)
        return (
            EventStream(None, _events(found, None, usage), headers) if body.stream else (_reply(found, usage), headers)
        )
    job = Job(service, voice, found.work, request.receive)
    await job.start()
    if body.stream:
        return EventStream(job, _events(found, job), headers)
    try:
        async for pieces in job.pieces():
            for number, piece in pieces:
                choice = found.choices[number]
                choice.text += piece.text
                choice.tokens += piece.tokens if body.logprobs is not None else ()
                choice.finish_reason = piece.finish_reason or choice.finish_reason
        return await service.read(_reply, found, job.usage), headers
    finally:
        job.close()


def _reply(found: _Completion, usage: Usage) -> TextReply:
    choices: list[TextChoice] = []
    for number, choice in enumerate(found.choices):
        front, tokens = found.echoed(number)
        text, logprobs = found.said(choice, front + choice.text, [*tokens, *choice.tokens])
        reason = choice.finish_reason
        choices.append(TextChoice(index=number, text=text, logprobs=logprobs, finish_reason=reason))
    return TextReply(
        id=found.id,
        created=found.created,
        model=found.body.model,
        choices=choices,
        usage=usage,
        system_fingerprint=found.voice.served.fingerprint,
    )


async def _events(found: _Completion, job: Job | None, usage: Usage | None = None) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream: prompts where they are echoed, texts, reasons, usage."""
    for number, choice in enumerate(found.choices):
        if found.body.echo:
            reason = "length" if job is None else None
            yield _chunk(found, number, *found.said(choice, *found.echoed(number)), reason)
    async for pieces in job.pieces() if job is not None else _nothing():
        if not pieces:
            yield ALIVE
        for number, piece in pieces:
            if piece.text or piece.finish_reason is not None or (piece.tokens and found.body.logprobs is not None):
                yield _chunk(found, number, *found.heard(number, piece), piece.finish_reason)
    if found.body.stream_options is not None and found.body.stream_options.include_usage:
        whole = job.usage if job is not None else usage
        yield _frame(found, [], whole)


async def _nothing() -> AsyncIterator[list[tuple[int, Piece]]]:
    for pieces in ():
        yield pieces


def _chunk(found: _Completion, number: int, text: str, logprobs: TextLogprobs | None, reason: str | None) -> bytes:
    shown = None if logprobs is None else logprobs.model_dump()
    return _frame(found, [{"index": number, "text": text, "logprobs": shown, "finish_reason": reason}], None)


def _frame(found: _Completion, choices: list[dict[str, Any]], usage: Usage | None) -> bytes:
    return event(
        {
            "id": found.id,
            "object": "text_completion",
            "created": found.created,
            "model": found.body.model,
            "system_fingerprint": found.voice.served.fingerprint,
            "choices": choices,
            "usage": None if usage is None else usage.model_dump(),
        }
    )
