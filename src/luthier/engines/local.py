"""Our own decoder: continuous batching, pages of keys and values shared between equal beginnings, streaming, cancel.

A prompt is computed once for all its answers, and equal beginnings of prompts once for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.anatomy import plain_model
from luthier.core.registry import ENGINES
from luthier.core.types import Completion, Prompt, Sampling
from luthier.engines.hf import check_prompt, end_ids, one_each
from luthier.engines.pages import PageStore
from luthier.engines.sample import choose
from luthier.engines.text import TextStream
from luthier.kernels.cpu import give_pages_back
from luthier.models.decoder import NativeDecoder, TorchDecoder, make_decoder
from luthier.models.decoder_parts import PAGE, Step, read_parts
from luthier.models.virtual import keys_and_values

PROMPT_TOKENS_PER_STEP = 512
"""Most prompt tokens computed beside the answers that are growing, so that those do not wait long."""
_Job = tuple[list[int], Sequence[int], int]
"""Table of pages, new tokens, and the position of the first of them."""


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, and its answers as they get done."""

    prompt: tuple[int, ...]
    """Virtual tokens, as negative numbers, and the real ones."""
    how: Sampling
    answers: list[Completion | None]
    reader: Callable[[int, str], None] | None = None
    """Called with the number of the answer and new text."""
    cancelled: bool = False

    @property
    def done(self) -> bool:
        """Tell whether every answer is there."""
        return self.cancelled or all(answer is not None for answer in self.answers)


@dataclass(slots=True, eq=False)
class _Prompt:
    """A prompt on its way into pages, then waiting for places for its answers."""

    request: Request
    table: list[int]
    computed: int
    started: int = 0
    """Answers begun."""
    logits_1V: Tensor | None = None


@dataclass(slots=True, eq=False)
class _Answer:
    """A growing answer. Keys and values of every token but the last are in its pages."""

    request: Request
    index: int
    table: list[int]
    draws: np.random.Generator
    tokens: list[int] = field(default_factory=list[int])
    logp: list[float] = field(default_factory=list[float])
    drawn_logp: list[float] = field(default_factory=list[float])
    """Empty where the temperature is 0 or 1."""
    text: TextStream | None = None

    @property
    def length(self) -> int:
        return len(self.request.prompt) + len(self.tokens)

    @property
    def sequence(self) -> tuple[int, ...]:
        return (*self.request.prompt, *self.tokens)


@ENGINES.register("local")
class LocalEngine:
    """Reads the weights of a model once and decodes without it. `sync` adopts new weights.

    `kind`: form of the weights, float32, bfloat16 or int8 (groups of 64, dynamic activations); None keeps the model's.
    `batch_size`: most answers that grow together.
    """

    keeps_weights: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32, kind: str | None = None) -> None:
        self.tokenizer, self.batch_size, self._kind = tokenizer, batch_size, kind
        self.counts = {"prompt_tokens": 0, "shared_tokens": 0, "new_tokens": 0, "steps": 0}
        self._lock = RLock()
        self._queue: deque[Request] = deque()
        self._prompts: list[_Prompt] = []
        self._answers: list[_Answer] = []
        self._decoder: NativeDecoder | TorchDecoder | None = None
        self.sync(model, 0)

    def sync(self, model: nn.Module, version: int) -> None:
        """Adopt the weights of `model`; answers on their way are given up."""
        with self._lock, torch.inference_mode():
            self._abort()
            self._decoder = None  # its memory first, then that of the new one
            give_pages_back()
            self.version, self.end_ids = version, end_ids(model, self.tokenizer)
            parts = read_parts(model)
            kind = self._kind or str(parts.embedding.dtype).removeprefix("torch.")
            self._decoder, self.description = make_decoder(parts, kind)
            self._max_positions = parts.max_positions
            self._device = parts.embedding.device
            self._pages = PageStore(parts.page_shape(), self._decoder.cache_dtype, self._device)
            self._write_virtual(model)
            self._name = plain_model(model).config.model_type

    def rest(self) -> None:
        """Give the memory of weights and pages back; the next `sync` brings them again."""
        with self._lock:
            self._abort()
            self._decoder, self._pages = None, PageStore((1,), torch.float32, self._device, first=1)
        give_pages_back()

    def _write_virtual(self, model: nn.Module) -> None:
        """Put the keys and values of virtual tokens into pages that every sequence begins with."""
        layers = keys_and_values(model)
        self._virtual = tuple(range(-1, -1 - layers[0][0].shape[1], -1)) if layers else ()
        self._virtual_pages = self._pages.write(self._virtual, layers) if layers else []

    def forget(self) -> None:
        """Drop the pages of earlier prompts."""
        with self._lock:
            self._pages.forget_all()
            self._pages.keep(self._virtual, self._virtual_pages)

    def generate(
        self, prompts: Sequence[Prompt], how: Sampling | Sequence[Sampling], n: int = 1
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt, in the order of the prompts."""
        hows = one_each(how, len(prompts))
        requests = [self.submit(prompt, each, n) for prompt, each in zip(prompts, hows, strict=True)]
        try:
            while not all(request.done for request in requests):
                self.step()
        finally:
            for request in requests:
                self.cancel(request)
        return [[answer for answer in request.answers if answer is not None] for request in requests]

    def stream(self, prompt: Prompt, how: Sampling) -> Iterator[str]:
        """Yield the text of one completion as it grows; closing the iterator cancels it."""
        parts: deque[str] = deque()
        request = self.submit(prompt, how, reader=lambda _, text: parts.append(text))
        try:
            while not request.done:
                self.step()
                while parts:
                    yield parts.popleft()
        finally:
            self.cancel(request)

    def submit(
        self, prompt: Prompt, how: Sampling, n: int = 1, reader: Callable[[int, str], None] | None = None
    ) -> Request:
        """Queue a prompt for `n` answers. Raises ModelError when it leaves no room for an answer."""
        check_prompt(prompt, self._max_positions - len(self._virtual), self._name)
        request = Request((*self._virtual, *prompt), how, [None] * n, reader)
        with self._lock:
            self._queue.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Give up what of `request` is not done."""
        with self._lock:
            if request.done:
                return
            request.cancelled = True
            if request in self._queue:
                self._queue.remove(request)
            for holder in [p for p in self._prompts if p.request is request]:
                self._prompts.remove(holder)
                self._release(holder.table)
            for answer in [a for a in self._answers if a.request is request]:
                self._finish(answer, "abort")

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one token for every growing answer, and some tokens of waiting prompts."""
        with self._lock:
            try:
                self._admit()
                self._advance()
            except BaseException:
                self._abort()
                raise

    def _abort(self) -> None:
        for request in {*self._queue, *(p.request for p in self._prompts), *(a.request for a in self._answers)}:
            self.cancel(request)

    def _admit(self) -> None:
        """Take prompts from the queue, as long as there are places and none waits for pages of another."""
        places = self.batch_size - len(self._answers) - sum(len(p.request.answers) - p.started for p in self._prompts)
        coming = {p.request.prompt for p in self._prompts if p.logits_1V is None}
        budget = PROMPT_TOKENS_PER_STEP - sum(len(p.request.prompt) - p.computed for p in self._prompts)
        while self._queue and budget > 0 and (places > 0 or not (self._prompts or self._answers)):
            prompt = self._queue[0].prompt
            # At least the last token is computed: its logits are needed.
            found = self._pages.find(prompt[: (len(prompt) - 1) // PAGE * PAGE])
            known = len(found) * PAGE
            if any(_share_page(prompt, other, known) for other in coming):
                break
            request = self._queue.popleft()
            for page in found:
                self._pages.use(page)
            if known < len(self._virtual):
                # Virtual tokens end inside a page, which each sequence goes on writing for itself.
                found.append(self._pages.copy(self._virtual_pages[-1]))
                known = len(self._virtual)
            self._prompts.append(_Prompt(request, found, known))
            coming.add(prompt)
            self.counts["shared_tokens"] += known
            places -= len(request.answers)
            budget -= len(prompt) - known

    def _advance(self) -> None:
        """One forward pass, then one token for every answer, new ones included."""
        growing, reading = list(self._answers), [p for p in self._prompts if p.logits_1V is None]
        jobs: list[_Job] = [(a.table, a.tokens[-1:], a.length - 1) for a in growing]
        budget = PROMPT_TOKENS_PER_STEP
        for prompt in reading:
            chunk = prompt.request.prompt[prompt.computed : prompt.computed + budget]
            if not chunk:
                break
            jobs.append((prompt.table, chunk, prompt.computed))
            budget -= len(chunk)
            prompt.computed += len(chunk)
            self.counts["prompt_tokens"] += len(chunk)
        parts: list[Tensor] = []
        if jobs:
            logits_NV = self._forward(jobs)
            parts = [logits_NV[: len(growing)]] if growing else []
            for row, prompt in enumerate(reading[: len(jobs) - len(growing)], len(growing)):
                if prompt.computed == len(prompt.request.prompt):
                    prompt.logits_1V = logits_NV[row : row + 1]
                    self._pages.keep(prompt.request.prompt, prompt.table)
        begun = self._begin()
        self._extend([*growing, *(a for _, a in begun)], [*parts, *(logits for logits, _ in begun)])
        self.counts["steps"] += 1

    def _forward(self, jobs: list[_Job]) -> Tensor:
        """Compute new tokens of each job and return the logits behind its last one."""
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        for number, (table, tokens, first) in enumerate(jobs):
            while len(table) * PAGE < first + len(tokens):
                table.append(self._pages.allocate())
            ids.extend(tokens)
            positions.extend(range(first, first + len(tokens)))
            sequences.extend([number] * len(tokens))
            wanted.append(len(ids) - 1)
        tables = np.zeros((len(jobs), max(len(table) for table, _, _ in jobs)), dtype=np.int32)
        for number, (table, _, _) in enumerate(jobs):
            tables[number, : len(table)] = table
        step = Step(
            ids=torch.tensor(ids, device=self._device),
            positions=torch.tensor(positions, device=self._device),
            sequences=torch.tensor(sequences, device=self._device),
            tables=torch.from_numpy(tables).to(self._device),
            wanted=torch.tensor(wanted, device=self._device),
        )
        assert self._decoder is not None, "the engine rests; sync gives it weights"
        return self._decoder.step(step, self._pages.memory)

    def _begin(self) -> list[tuple[Tensor, _Answer]]:
        """Begin answers to computed prompts where there are places; return them with logits of their first token."""
        begun: list[tuple[Tensor, _Answer]] = []
        for prompt in [p for p in self._prompts if p.logits_1V is not None]:
            request, logits = prompt.request, prompt.logits_1V
            while logits is not None and prompt.started < len(request.answers) and len(self._answers) < self.batch_size:
                last = prompt.started == len(request.answers) - 1
                answer = self._new_answer(request, prompt.started, prompt.table if last else self._fork(prompt))
                prompt.started += 1
                self._answers.append(answer)
                begun.append((logits, answer))
            if prompt.started == len(request.answers):
                self._prompts.remove(prompt)
        return begun

    def _fork(self, prompt: _Prompt) -> list[int]:
        """Return a table that shares the full pages of a prompt; the page that answers go on writing is copied."""
        full = len(prompt.request.prompt) // PAGE
        for page in prompt.table[:full]:
            self._pages.use(page)
        return [*prompt.table[:full], *(self._pages.copy(page) for page in prompt.table[full:])]

    def _new_answer(self, request: Request, index: int, table: list[int]) -> _Answer:
        how = request.how
        seed = None if how.sampling_seed is None else [how.sampling_seed, index]
        text = TextStream(self.tokenizer, how.stop) if how.stop or request.reader else None
        return _Answer(request, index, table, np.random.default_rng(seed), text=text)

    def _extend(self, answers: list[_Answer], logits: list[Tensor]) -> None:
        """Draw a token for each answer and finish those that end with it."""
        if not answers:
            return
        logits_NV = logits[0] if len(logits) == 1 else torch.cat(logits)
        by_way: dict[tuple[object, ...], list[int]] = {}
        for row, answer in enumerate(answers):
            how = answer.request.how
            way = how.temperature, how.top_p, how.top_k, how.min_p, how.repetition_penalty
            by_way.setdefault(way, []).append(row)
        for rows in by_way.values():
            chosen = [answers[row] for row in rows]
            part = logits_NV if len(rows) == len(answers) else logits_NV[rows]
            how = chosen[0].request.how
            seen = [a.sequence[len(self._virtual) :] for a in chosen] if how.repetition_penalty != 1.0 else []
            tokens, logps, drawn = choose(part, how, seen, [a.draws for a in chosen])
            for place, answer in enumerate(chosen):
                answer.logp.append(logps[place])
                if drawn is not None:
                    answer.drawn_logp.append(drawn[place])
                self._append(answer, tokens[place])

    def _append(self, answer: _Answer, token: int) -> None:
        answer.tokens.append(token)
        self.counts["new_tokens"] += 1
        if answer.text is not None:
            self._read(answer, answer.text.push(token))
        if token in self.end_ids or (answer.text is not None and answer.text.stopped):
            self._finish(answer, "stop")
        elif len(answer.tokens) >= answer.request.how.max_new_tokens or answer.length > self._max_positions:
            self._finish(answer, "length")

    @staticmethod
    def _read(answer: _Answer, text: str) -> None:
        if text and answer.request.reader is not None:
            answer.request.reader(answer.index, text)

    def _finish(self, answer: _Answer, reason: Literal["stop", "length", "abort"]) -> None:
        request = answer.request
        if answer.text is not None and reason != "abort":
            self._read(answer, answer.text.finish())
        request.answers[answer.index] = Completion(
            prompt_tokens=request.prompt[len(self._virtual) :],
            tokens=tuple(answer.tokens),
            text=answer.text.text if answer.text else self.tokenizer.decode(answer.tokens, skip_special_tokens=True),
            logp=tuple(answer.logp),
            drawn_logp=tuple(answer.drawn_logp) or None,
            finish_reason=reason,
            version=self.version,
        )
        self._answers.remove(answer)
        self._pages.keep(answer.sequence[:-1], answer.table)
        self._release(answer.table)

    def _release(self, table: list[int]) -> None:
        # Last pages first: of an unused chain the end is dropped before its beginning.
        for page in reversed(table):
            self._pages.release(page)


def _share_page(prompt: tuple[int, ...], other: tuple[int, ...], known: int) -> bool:
    """Tell whether the next page of `prompt` is among those that are being computed for `other`."""
    end = (known // PAGE + 1) * PAGE
    return end <= len(other) and end < len(prompt) and prompt[:end] == other[:end]
