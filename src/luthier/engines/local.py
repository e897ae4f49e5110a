"""Our own decoder: continuous batching, pages of keys and values shared between equal beginnings, streaming, cancel.

A prompt is computed once for all its answers, and equal beginnings of prompts once for all of them.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager, suppress
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from luthier.core.anatomy import plain_model
from luthier.core.errors import ModelError
from luthier.core.progress import within
from luthier.core.registry import ENGINES
from luthier.engines.batch import Batch
from luthier.engines.hf import check_prompt, one_each
from luthier.engines.requests import Queue, Request
from luthier.engines.scoring import Passes, Result, embed, score
from luthier.engines.shaping import Piece, ScoredToken, Shaping
from luthier.kernels.cpu import give_pages_back

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from torch import Tensor

    from luthier.core.types import Completion, Prompt, Sampling

_PATIENCE_SECONDS = 0.1
"""Longest wait for a step of another thread before looking again."""


@ENGINES.register("local")
class LocalEngine:
    """Reads the weights of a model once and decodes without it. `sync` adopts new weights.

    `kind`: form of the weights, float32, bfloat16 or int8 (groups of 64, dynamic activations); None keeps the model's.
    `batch_size`: most answers that grow together. Any thread may call any method; `step` is the only one that computes
    answers, one thread at a time, and `submit` and `cancel` do not wait for it. `adapters`: names of LoRA adapters on
    the model, which work beside the weights below them, each for the requests that ask for it; without any, what is at
    work on the model is merged.
    """

    keeps_weights: ClassVar[bool] = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 32,
        kind: str | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.tokenizer, self.batch_size, self._kind, self._adapters = tokenizer, batch_size, kind, tuple(adapters)
        self.counts = {"prompt_tokens": 0, "shared_tokens": 0, "new_tokens": 0, "steps": 0}
        self._computing, self._urgent, self._stepped = Lock(), Lock(), Condition()
        self._queue, self.failures = Queue(), 0
        self._batch: Batch | None = None
        self.sync(model, 0)

    # ---- weights

    def sync(self, model: nn.Module, version: int) -> None:
        """Adopt the weights of `model`; answers on their way are given up."""
        with self._alone(), torch.inference_mode():
            self._abandon()
            self._batch = None  # its memory first, then that of the new one
            give_pages_back()
            asked = self.batch_size, self._kind, self.counts, self._adapters
            self._batch = batch = Batch(model, self.tokenizer, *asked)
            self.version = version
            self.end_ids, self.description, self._virtual = batch.end_ids, batch.description, batch.virtual
            self._num_tokens = batch.num_tokens
            self._max_positions, self._name = batch.max_positions, plain_model(model).config.model_type

    def rest(self) -> None:
        """Give the memory of weights and pages back; the next `sync` brings them again."""
        with self._alone():
            self._abandon()
            self._batch = None
        give_pages_back()

    def forget(self) -> None:
        """Drop the pages of earlier prompts."""
        with self._alone():
            self._awake().forget()

    @property
    def version(self) -> int:
        """Number of the weights, as given to `sync`; answers carry it."""
        return self._version

    @version.setter
    def version(self, number: int) -> None:
        self._version = number
        if self._batch is not None:
            self._batch.version = number

    @property
    def num_tokens(self) -> int:
        """Return how many tokens the model knows."""
        return self._num_tokens

    @property
    def max_tokens(self) -> int:
        """Return how many tokens a prompt and its answer may have together."""
        return self._max_positions - len(self._virtual)

    def _awake(self) -> Batch:
        if self._batch is None:
            raise ModelError("the engine rests: it has no weights until the next sync", code="engine_rests")
        return self._batch

    # ---- answers

    def generate(
        self, prompts: Sequence[Prompt], how: Sampling | Sequence[Sampling], n: int = 1
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt, in the order of the prompts."""
        hows = one_each(how, len(prompts))
        requests = [self.submit(prompt, each, n) for prompt, each in zip(prompts, hows, strict=True)]
        self._complete(requests)
        return [[answer for answer in request.answers if answer is not None] for request in requests]

    def stream(self, prompt: Prompt, how: Sampling) -> Iterator[str]:
        """Yield the text of one completion as it grows; closing the iterator cancels it."""
        pieces: deque[Piece] = deque()
        request = self.submit(prompt, how, reader=pieces.append)
        try:
            while pieces or not request.done:
                if not pieces:
                    self._step_or_wait()
                elif text := pieces.popleft().text:
                    yield text
        finally:
            self.cancel(request)
        if request.error is not None:
            raise request.error

    def submit(
        self,
        prompt: Prompt,
        how: Sampling,
        n: int = 1,
        *,
        reader: Callable[[Piece], None] | None = None,
        shaping: Shaping | None = None,
        client: str = "",
    ) -> Request:
        """Queue a prompt for `n` answers. Raises ModelError when it leaves no room for an answer or the engine rests.

        `reader` hears of every token as soon as its text is certain, from the thread that computes: it must be quick,
        and may call `submit` and `cancel` but nothing that computes. A token that a stop text begins in is not told.
        Where the reader fails, its request ends and keeps the error. `client`: the queue serves clients in turn.
        """
        shaping = shaping or Shaping()
        self._check(prompt, shaping)
        request = Request(
            prompt=(*self._virtual, *prompt),
            how=how,
            answers=[None] * n,
            reader=reader,
            shaping=shaping,
            client=client,
            num_virtual=len(self._virtual),
        )
        self._queue.push(request)
        return request

    def _check(self, prompt: Prompt, shaping: Shaping, *, answers: bool = True) -> None:
        self._awake()
        if shaping.adapter is not None and shaping.adapter not in self._adapters:
            there = ", ".join(self._adapters) or "none"
            raise ModelError(f"no adapter is called {shaping.adapter!r}; there are: {there}")
        check_prompt(prompt, self.max_tokens + (not answers), self._name)
        named = {"the prompt": prompt, "logit_bias": shaping.logit_bias}
        for name, tokens in named.items():
            if tokens and not (min(tokens) >= 0 and max(tokens) < self._num_tokens):
                wrong = next(token for token in tokens if not 0 <= token < self._num_tokens)
                raise ModelError(
                    f"{name} has token {wrong}, but this {self._name} model knows tokens 0 to {self._num_tokens - 1}",
                    code="prompt_token",
                )

    def cancel(self, request: Request) -> None:
        """Give up what of `request` is not done, at once or when the step that is running ends."""
        if request.done:
            return
        request.cancelled = True
        if self._queue.remove(request):
            request.give_up(self.version)
        else:
            self._tidy()

    # ---- prompts alone

    def score(
        self, prompts: Sequence[Prompt], *, first: Sequence[int] = (), top: int = 0, adapter: str | None = None
    ) -> list[list[ScoredToken]]:
        """Return the tokens of each prompt with their log-probabilities given those before them.

        `first`: place of the first token that is asked for, of each prompt; what stands before it is computed once for
        prompts that begin alike. The very first token of a prompt has nothing before it and gets 0.0. `top`: most
        probable tokens reported at each place. Raises ModelError for prompts that do not fit.
        """
        asked, firsts = self._checked(prompts, adapter), list(first) or [0] * len(prompts)
        return self._beside_answers(lambda batch: score(batch, asked, firsts, top, adapter))

    def embed(self, prompts: Sequence[Prompt], *, adapter: str | None = None) -> Tensor:
        """Return the mean over each prompt's tokens of the hidden states behind the last norm, float32 [N, D]."""
        asked = self._checked(prompts, adapter)
        return self._beside_answers(lambda batch: embed(batch, asked, adapter))

    def _beside_answers(self, work: Callable[[Batch], Passes[Result]]) -> Result:
        """Compute one pass after the other, with a step for the answers between two. Raises ModelError after a sync."""
        batch = self._awake()
        passes = work(batch)
        try:
            while True:
                with self._alone(), torch.inference_mode():
                    if self._batch is not batch:
                        raise ModelError("the weights changed while prompts were read; ask again", code="model_changed")
                    next(passes)
                    if batch.requests() or len(self._queue):
                        with suppress(Exception):  # its requests keep it, and this one goes on
                            self._advance()
                self._tidy()
        except StopIteration as end:
            return end.value
        finally:
            with self._alone():
                passes.close()

    def _checked(self, prompts: Sequence[Prompt], adapter: str | None) -> list[tuple[int, ...]]:
        for prompt in prompts:
            self._check(prompt, Shaping(adapter=adapter), answers=False)
        return [tuple(prompt) for prompt in prompts]

    # ---- computing

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait in the queue."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Return how many requests are computed."""
        batch = self._batch
        return 0 if batch is None else len(batch.requests())

    def step(self) -> None:
        """Compute one token for every growing answer, and some tokens of waiting prompts.

        When it raises, every request that was computed is given up and keeps the error; those in the queue stay.
        """
        while self._urgent.locked():
            time.sleep(0.001)
        with self._computing:
            self._advance()
        self._tidy()

    @torch.inference_mode()
    def _advance(self) -> None:
        batch = self._awake()
        try:
            batch.sweep()
            batch.admit(self._queue)
            batch.advance()
        except BaseException as error:
            self.failures += 1
            batch.abort(error if isinstance(error, Exception) else None)
            raise
        finally:
            with self._stepped:
                self._stepped.notify_all()

    def _tidy(self) -> None:
        """Drop what was cancelled, unless a thread is computing: that one does it when it is done."""
        while (batch := self._batch) is not None and any(r.cancelled for r in batch.requests()):
            if not self._computing.acquire(blocking=False):
                return
            try:
                batch.sweep()
            finally:
                self._computing.release()

    def _complete(self, requests: Sequence[Request]) -> None:
        """Compute until every request is done. Raises what kept one from it."""
        try:
            while (done := sum(request.done for request in requests)) < len(requests):
                within(done, len(requests))
                self._step_or_wait()
        finally:
            for request in requests:
                self.cancel(request)
        for request in requests:
            if request.error is not None:
                raise request.error

    def _step_or_wait(self) -> None:
        """Compute a step, or wait for the one that another thread computes."""
        if not self._urgent.locked() and self._computing.acquire(blocking=False):
            try:
                self._advance()
            finally:
                self._computing.release()
            self._tidy()
        else:
            with self._stepped:
                self._stepped.wait(_PATIENCE_SECONDS)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Keep steps away inside the block. A thread that makes one step after the other lets it in between two."""
        with self._urgent:
            self._computing.acquire()
        try:
            yield
        finally:
            self._computing.release()

    def abandon(self) -> None:
        """Give up every request."""
        with self._alone():
            self._abandon()

    def _abandon(self) -> None:
        for request in self._queue.clear():
            request.give_up(self.version)
        if self._batch is not None:
            self._batch.abort(None)
