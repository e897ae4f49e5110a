"""What is asked of the decoder, from its place in the queue to the last token of its last answer."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import numpy as np
from torch import Tensor

from luthier.core.types import Completion, Sampling
from luthier.engines.shaping import Guide, Piece, ScoredToken, Shaping
from luthier.engines.text import TextStream

Reason = Literal["stop", "length", "abort"]


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A prompt, and its answers as they get done."""

    prompt: tuple[int, ...]
    """Virtual tokens, as negative numbers, and the real ones."""
    how: Sampling
    answers: list[Completion | None]
    reader: Callable[[Piece], None] | None = None
    shaping: Shaping = field(default_factory=Shaping)
    client: str = ""
    """Who asks; the queue serves clients in turn."""
    num_virtual: int = 0
    cancelled: bool = False
    error: Exception | None = None
    """Why it was given up, where nobody wished it."""

    @property
    def done(self) -> bool:
        """Tell whether every answer is there, or none is waited for any more."""
        return self.cancelled or all(answer is not None for answer in self.answers)

    def tell(self, piece: Piece) -> None:
        """Hand a piece to the reader. One that fails hears no more, and its request is given up."""
        if self.reader is None or (self.cancelled and piece.finish_reason is None):
            return
        try:
            self.reader(piece)
        except Exception as error:  # noqa: BLE001  the reader is not ours, and other requests go on
            self.reader = None
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Mark as given up because of `error`; the first one is kept."""
        self.error = self.error or error
        self.cancelled = True

    def give_up(self, version: int) -> None:
        """End the answers that were never begun."""
        self.cancelled = True
        prompt = self.prompt[self.num_virtual :]
        for index, answer in enumerate(self.answers):
            if answer is None:
                self.answers[index] = Completion(
                    prompt_tokens=prompt, tokens=(), logp=(), finish_reason="abort", version=version
                )
                self.tell(Piece(index, "", (), "abort"))


class Queue:
    """Requests that wait, those of each client in order, clients in turn. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: OrderedDict[str, deque[Request]] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def push(self, request: Request) -> None:
        """Add a request behind the others of its client."""
        with self._lock:
            self._waiting.setdefault(request.client, deque()).append(request)

    def take(self, fits: Callable[[Request], bool]) -> Request | None:
        """Return the first request of the first client whose first one `fits`; that client is then the last in turn."""
        with self._lock:
            for client, waiting in self._waiting.items():
                if fits(waiting[0]):
                    self._waiting.move_to_end(client)
                    return self._without(client, waiting.popleft())
        return None

    def remove(self, request: Request) -> bool:
        """Take a request out; False when it is not here."""
        with self._lock:
            if request not in self._waiting.get(request.client, ()):
                return False
            self._waiting[request.client].remove(request)
            self._without(request.client, request)
            return True

    def clear(self) -> list[Request]:
        """Take every request out and return them."""
        with self._lock:
            gone = [request for waiting in self._waiting.values() for request in waiting]
            self._waiting.clear()
        return gone

    def _without(self, client: str, request: Request) -> Request:
        if not self._waiting[client]:
            del self._waiting[client]
        return request


@dataclass(slots=True, eq=False)
class Reading:
    """A prompt on its way into pages, then waiting for places for its answers."""

    request: Request
    table: list[int]
    computed: int
    started: int = 0
    """Answers begun."""
    logits_1V: Tensor | None = None

    @property
    def rest(self) -> int:
        """Return how many tokens are not computed yet."""
        return len(self.request.prompt) - self.computed


@dataclass(slots=True, eq=False)
class Growing:
    """A growing answer. Keys and values of every token but the last are in its pages."""

    request: Request
    index: int
    table: list[int]
    draws: np.random.Generator
    guide: Guide | None = None
    text: TextStream | None = None
    """None where nobody needs the text before the end."""
    tokens: list[int] = field(default_factory=list[int])
    logp: list[float] = field(default_factory=list[float])
    drawn_logp: list[float] = field(default_factory=list[float])
    """Empty where the temperature is 0 or 1."""
    times: Counter[int] = field(default_factory=Counter[int])
    """How often each token came; counted where a penalty asks for it."""
    held: deque[ScoredToken] = field(default_factory=deque[ScoredToken])
    """Tokens that the reader has not heard of yet."""

    @property
    def length(self) -> int:
        """Return how many tokens prompt and answer have."""
        return len(self.request.prompt) + len(self.tokens)

    @property
    def sequence(self) -> tuple[int, ...]:
        """Return prompt and answer."""
        return (*self.request.prompt, *self.tokens)

    def take(self, token: ScoredToken, drawn_logp: float | None) -> None:
        """Add a token and tell the reader what is certain of it."""
        request = self.request
        self.tokens.append(token.token)
        self.logp.append(token.logp)
        if drawn_logp is not None:
            self.drawn_logp.append(drawn_logp)
        if request.shaping.presence_penalty or request.shaping.frequency_penalty:
            self.times[token.token] += 1
        self._lead(token.token)
        if self.text is not None:
            self.held.append(token)
            text = self.text.push(token.token)
            tokens = self._certain()
            if text or tokens:
                request.tell(Piece(self.index, text, tokens))

    def _lead(self, token: int) -> None:
        if self.guide is None:
            return
        try:
            self.guide.take(token)
        except Exception as error:  # noqa: BLE001  the guide belongs to this request, and others go on
            self.request.fail(error)

    def finish(self, reason: Reason, tokenizer: Any, version: int) -> None:
        """Put the answer into its request and tell the reader its last piece."""
        request = self.request
        text = self.text.finish() if self.text is not None and reason != "abort" else ""
        said = tokenizer.decode(self.tokens, skip_special_tokens=True) if self.text is None else self.text.text
        request.answers[self.index] = Completion(
            prompt_tokens=request.prompt[request.num_virtual :],
            tokens=tuple(self.tokens),
            text=said,
            logp=tuple(self.logp),
            drawn_logp=tuple(self.drawn_logp) or None,
            finish_reason=reason,
            version=version,
        )
        request.tell(Piece(self.index, text, self._certain(), reason))

    def _certain(self) -> tuple[ScoredToken, ...]:
        """Take the tokens that are certain now out of those that are held."""
        if self.text is None:
            return ()
        told = len(self.tokens) - len(self.held)
        return tuple(self.held.popleft() for _ in range(self.text.num_certain - told))
