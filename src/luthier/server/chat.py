"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.engines.shaping import ScoredToken
from luthier.server.conversation import read_conversation
from luthier.server.drawing import sampling, shaping
from luthier.server.errors import bad
from luthier.server.fields import ignored_header
from luthier.server.job import Job, Work
from luthier.server.replies import (
    ChatChoice,
    ChatLogprobs,
    ChatMessage,
    ChatReply,
    FinishReason,
    FunctionCall,
    ToolCall,
)
from luthier.server.requests import ChatRequest
from luthier.server.speech import Listener, Said, Whole
from luthier.server.stream import ALIVE, EventStream, event
from luthier.server.tools import toolbox_of
from luthier.server.voice import Voice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request

    from luthier.server.replies import TokenLogprob
    from luthier.server.service import Service


@dataclass(slots=True)
class _Choice:
    """One of n answers."""

    listener: Listener
    whole: Whole = field(default_factory=Whole)
    tokens: list[ScoredToken] = field(default_factory=list)
    finish_reason: FinishReason = "stop"


@dataclass(slots=True)
class _Chat:
    """A request that has been read."""

    body: ChatRequest
    voice: Voice
    work: Work
    choices: list[_Choice]
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def logprobs(self, tokens: list[ScoredToken]) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        texts = self.voice.texts
        found: list[TokenLogprob] = [texts.scored(token) for token in tokens if token.token not in texts.silent]
        return ChatLogprobs(content=found)


def _most_tokens(body: ChatRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise bad(f"max_tokens is {old} and max_completion_tokens is {new}; send one of them", "max_tokens")
    return old if new is None else new


def _read(body: ChatRequest, voice: Voice, client: str) -> _Chat:
    """Turn a request into work. Raises ApiError."""
    if body.top_logprobs and not body.logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    most = _most_tokens(body)
    prompt, opened = read_conversation(body, voice)
    box = toolbox_of(body, voice, opened=opened)
    how = sampling(body, voice, len(prompt), most, voice.how.max_new_tokens)
    shape = shaping(body, voice, top=body.top_logprobs or 0, guide=box.guide)
    work = Work(prompts=[prompt], how=how, shaping=shape, n=body.n or 1, client=client)
    return _Chat(body, voice, work, [_Choice(box.listener()) for _ in range(work.n)])


async def answer_chat(service: Service, body: ChatRequest, request: Request) -> Any:
    """Answer a conversation, at once or as it grows."""
    voice = service.voice(body.model)
    chat = await service.read(_read, body, voice, service.client(request, body.user))
    job = Job(service, voice, chat.work, request.receive)
    await job.start()
    headers = ignored_header(body)
    if body.stream:
        return EventStream(job, _events(chat, job), headers)
    try:
        async for pieces in job.pieces():
            for number, piece in pieces:
                choice = chat.choices[number]
                choice.whole.add(choice.listener.hear(piece))
                choice.tokens += piece.tokens if body.logprobs else ()
                choice.finish_reason = _reason(choice, piece.finish_reason)
        return await service.read(_reply, chat, job), headers
    finally:
        job.close()


def _reason(choice: _Choice, found: str | None) -> FinishReason:
    """Return why an answer ended; calls that are whole count for more than the token that followed them."""
    if found == "length":
        return "length"
    return "tool_calls" if choice.whole.calls else "stop"


def _tool_call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", function=FunctionCall(name=name, arguments=arguments))


def _reply(chat: _Chat, job: Job) -> ChatReply:
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage(
                content=choice.whole.content if choice.whole.content or not choice.whole.calls else None,
                reasoning_content=choice.whole.reasoning or None,
                tool_calls=[_tool_call(call.name, call.arguments) for call in choice.whole.calls] or None,
            ),
            logprobs=chat.logprobs(choice.tokens),
            finish_reason=choice.finish_reason,
        )
        for index, choice in enumerate(chat.choices)
    ]
    return ChatReply(
        id=chat.id,
        created=chat.created,
        model=chat.body.model,
        choices=choices,
        usage=job.usage,
        system_fingerprint=chat.voice.served.fingerprint,
    )


async def _events(chat: _Chat, job: Job) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream: roles, text, reasons, usage."""
    for index in range(len(chat.choices)):
        yield _chunk(chat, index, {"role": "assistant", "content": "", "refusal": None})
    async for pieces in job.pieces():
        if not pieces:
            yield ALIVE
        for index, piece in pieces:
            choice = chat.choices[index]
            said = choice.listener.hear(piece)
            logprobs = chat.logprobs(list(piece.tokens))
            shown = logprobs.model_dump() if logprobs is not None and logprobs.content else None
            for delta in _deltas(choice, said, silent=shown is None):
                yield _chunk(chat, index, delta, shown)
                shown = None
            if piece.finish_reason is not None:
                choice.finish_reason = _reason(choice, piece.finish_reason)
                yield _chunk(chat, index, {}, None, choice.finish_reason)
    if chat.body.stream_options is not None and chat.body.stream_options.include_usage:
        yield _frame(chat, [], job.usage.model_dump())


def _deltas(choice: _Choice, said: Said, *, silent: bool) -> list[dict[str, Any]]:
    """Return what a piece adds, each kind in a delta of its own; an empty one for log-probabilities alone."""
    first = len(choice.whole.calls)
    choice.whole.calls += said.calls
    found: list[dict[str, Any]] = []
    if said.reasoning:
        found.append({"reasoning_content": said.reasoning})
    if said.content or not (silent or said.reasoning or said.calls):
        found.append({"content": said.content})
    for number, call in enumerate(said.calls, first):
        found.append({"tool_calls": [{"index": number, **_tool_call(call.name, call.arguments).model_dump()}]})
    return found


def _chunk(
    chat: _Chat, index: int, delta: Mapping[str, Any], logprobs: Any = None, finish_reason: str | None = None
) -> bytes:
    return _frame(chat, [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}], None)


def _frame(chat: _Chat, choices: list[dict[str, Any]], usage: Mapping[str, Any] | None) -> bytes:
    return event(
        {
            "id": chat.id,
            "object": "chat.completion.chunk",
            "created": chat.created,
            "model": chat.body.model,
            "system_fingerprint": chat.voice.served.fingerprint,
            "choices": choices,
            "usage": usage,
        }
    )
