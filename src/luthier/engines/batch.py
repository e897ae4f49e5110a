"""Everything that one step computes: prompts on their way into pages, and the answers that grow together.

Knows nothing of threads: whoever calls it holds the engine's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.engines.hf import end_ids
from luthier.engines.pages import PageStore
from luthier.engines.requests import Growing, Queue, Reading, Reason, Request
from luthier.engines.shaped import Drawn, draw_next
from luthier.engines.text import TextStream
from luthier.models.adapters import switched_off
from luthier.models.decoder import make_decoder
from luthier.models.decoder_parts import PAGE, Step, Turns, read_parts
from luthier.models.low_rank import read_adapter
from luthier.models.virtual import keys_and_values

PROMPT_TOKENS_PER_STEP = 512
"""Most prompt tokens computed beside the answers that are growing, so that those do not wait long."""


@dataclass(frozen=True, slots=True)
class Job:
    """New tokens of one sequence."""

    table: list[int]
    tokens: Sequence[int]
    first: int
    """Position of the first of them."""
    wanted: int
    """How many of the last ones' hidden states are asked for."""
    adapter: str | None = None


class Batch:
    """Reads the weights of a model once; `counts` is added to.

    `adapters`: names of LoRA adapters on the model that requests may ask for; the weights are then those below them.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        size: int,
        kind: str | None,
        counts: dict[str, int],
        adapters: Sequence[str] = (),
    ) -> None:
        with switched_off(model) if adapters else nullcontext():
            parts = read_parts(model)
            kind = kind or str(parts.embedding.dtype).removeprefix("torch.")
            self.decoder, self.description = make_decoder(parts, kind)
        self.adapters = {name: self.decoder.add_adapter(read_adapter(model, parts, name)) for name in adapters}
        self.max_positions, self.num_tokens = parts.max_positions, len(parts.embedding)
        self.end_ids, self.version = end_ids(model, tokenizer), 0
        self.pages = PageStore(parts.page_shape(), self.decoder.cache_dtype, parts.embedding.device)
        self._tokenizer, self._size, self._counts, self._device = tokenizer, size, counts, parts.embedding.device
        self.prompts: list[Reading] = []
        self.answers: list[Growing] = []
        # Every sequence begins with the pages of virtual tokens.
        layers = keys_and_values(model)
        self.virtual = tuple(range(-1, -1 - layers[0][0].shape[1], -1)) if layers else ()
        self._virtual_pages = self.pages.write(self.virtual, layers) if layers else []

    def forget(self) -> None:
        """Drop the pages of earlier prompts."""
        self.pages.forget_all()
        self.pages.keep(self.virtual, self._virtual_pages)

    def mark_of(self, adapter: str | None) -> int:
        """Return what keeps the pages of one adapter apart from those of others."""
        return 0 if adapter is None else -1 - self.adapters[adapter]

    # ---- giving up

    def requests(self) -> set[Request]:
        """Return the requests that are computed."""
        return {*(prompt.request for prompt in self.prompts), *(answer.request for answer in self.answers)}

    def sweep(self) -> None:
        """Drop what was cancelled."""
        for request in self.requests():
            if request.cancelled:
                self._drop(request)

    def abort(self, error: Exception | None) -> None:
        """Drop everything; `error` says why, None that it was a wish."""
        for request in self.requests():
            request.cancelled = True
            request.error = request.error or error
            self._drop(request)

    def _drop(self, request: Request) -> None:
        for prompt in [p for p in self.prompts if p.request is request]:
            self.prompts.remove(prompt)
            self.release(prompt.table)
        for answer in [a for a in self.answers if a.request is request]:
            self._finish(answer, "abort")
        request.give_up(self.version)

    # ---- prompts

    def admit(self, queue: Queue) -> None:
        """Take prompts from the queue, as long as there are places; one that waits for pages of another stays there."""
        places = self._size - len(self.answers) - sum(len(p.request.answers) - p.started for p in self.prompts)
        coming = {(p.request.shaping.adapter, p.request.prompt) for p in self.prompts if p.logits_1V is None}
        budget = PROMPT_TOKENS_PER_STEP - sum(p.rest for p in self.prompts)

        def fits(request: Request) -> bool:
            adapter, known = request.shaping.adapter, len(self._find(request)) * PAGE
            return not any(own == adapter and share_page(request.prompt, other, known) for own, other in coming)

        while budget > 0 and (places > 0 or not (self.prompts or self.answers)):
            request = queue.take(fits)
            if request is None:
                break
            prompt = self._enter(request)
            coming.add((request.shaping.adapter, request.prompt))
            places -= len(request.answers)
            budget -= prompt.rest

    def _find(self, request: Request) -> list[int]:
        # At least the last token is computed: its hidden state is needed.
        known = request.prompt[: (len(request.prompt) - 1) // PAGE * PAGE]
        return self.pages.find(known, self.mark_of(request.shaping.adapter))

    def _enter(self, request: Request) -> Reading:
        prompt = Reading(request, *self.enter(self._find(request)))
        self.prompts.append(prompt)
        self._counts["shared_tokens"] += prompt.computed
        return prompt

    def enter(self, found: list[int]) -> tuple[list[int], int]:
        """Use known pages as the beginning of a sequence; return its table and how many tokens that is."""
        for page in found:
            self.pages.use(page)
        if len(found) * PAGE >= len(self.virtual):
            return found, len(found) * PAGE
        # Virtual tokens end inside a page, which each sequence goes on writing for itself.
        return [*found, self.pages.copy(self._virtual_pages[-1])], len(self.virtual)

    # ---- one step

    def advance(self) -> None:
        """One forward pass, then one token for every answer, new ones included."""
        growing, reading = list(self.answers), [p for p in self.prompts if p.logits_1V is None]
        jobs = [Job(a.table, a.tokens[-1:], a.length - 1, 1, a.request.shaping.adapter) for a in growing]
        budget = PROMPT_TOKENS_PER_STEP
        for prompt in reading:
            chunk = prompt.request.prompt[prompt.computed : prompt.computed + budget]
            if not chunk:
                break
            is_last = len(chunk) == prompt.rest
            jobs.append(Job(prompt.table, chunk, prompt.computed, int(is_last), prompt.request.shaping.adapter))
            budget -= len(chunk)
            prompt.computed += len(chunk)
            self._counts["prompt_tokens"] += len(chunk)
        logits: list[Tensor] = []
        if jobs:
            logits_NV = self.decoder.logits(self.hidden(jobs))
            logits = [logits_NV[: len(growing)]] if growing else []
            whole = [p for p in reading if p.rest == 0]
            for row, prompt in enumerate(whole, len(growing)):
                prompt.logits_1V = logits_NV[row : row + 1]
                self.pages.keep(prompt.request.prompt, prompt.table, self.mark_of(prompt.request.shaping.adapter))
        begun = self._begin()
        self._extend([*growing, *(a for _, a in begun)], [*logits, *(row for row, _ in begun)])
        self._counts["steps"] += 1
        self.sweep()

    def hidden(self, jobs: list[Job]) -> Tensor:
        """Compute new tokens of several sequences; return the hidden states that are wanted, in their order [N, D]."""
        return self.decoder.hidden(self._step(jobs), self.pages.memory)

    def _step(self, jobs: list[Job]) -> Step:
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        for number, job in enumerate(jobs):
            end = job.first + len(job.tokens)
            while len(job.table) * PAGE < end:
                job.table.append(self.pages.allocate())
            ids.extend(job.tokens)
            positions.extend(range(job.first, end))
            sequences.extend([number] * len(job.tokens))
            wanted.extend(range(len(ids) - job.wanted, len(ids)))
        tables = np.zeros((len(jobs), max(len(job.table) for job in jobs)), dtype=np.int32)
        for number, job in enumerate(jobs):
            tables[number, : len(job.table)] = job.table
        return Step(
            ids=torch.tensor(ids, device=self._device),
            positions=torch.tensor(positions, device=self._device),
            sequences=torch.tensor(sequences, device=self._device),
            tables=torch.from_numpy(tables).to(self._device),
            wanted=torch.tensor(wanted, dtype=torch.long, device=self._device),
            turns=self._turns(jobs),
        )

    def _turns(self, jobs: list[Job]) -> Turns:
        """Return the rows of each adapter."""
        rows: dict[str, list[int]] = {}
        row = 0
        for job in jobs:
            if job.adapter is not None:
                rows.setdefault(job.adapter, []).extend(range(row, row + len(job.tokens)))
            row += len(job.tokens)
        return tuple(
            (self.adapters[name], None if len(own) == row else torch.tensor(own, device=self._device))
            for name, own in rows.items()
        )

    # ---- answers

    def _begin(self) -> list[tuple[Tensor, Growing]]:
        """Begin answers to computed prompts where there are places; return them with logits of their first token."""
        begun: list[tuple[Tensor, Growing]] = []
        for prompt in [p for p in self.prompts if p.logits_1V is not None]:
            request, logits = prompt.request, prompt.logits_1V
            while logits is not None and prompt.started < len(request.answers) and len(self.answers) < self._size:
                try:
                    guide = None if request.shaping.guide is None else request.shaping.guide()
                except Exception as error:  # noqa: BLE001  the guide belongs to this request, and others go on
                    request.fail(error)
                    break
                last = prompt.started == len(request.answers) - 1
                answer = self._new_answer(request, prompt.started, prompt.table if last else self._fork(prompt))
                answer.guide = guide
                prompt.started += 1
                self.answers.append(answer)
                begun.append((logits, answer))
            if prompt.started == len(request.answers):
                self.prompts.remove(prompt)
        return begun

    def _fork(self, prompt: Reading) -> list[int]:
        """Return a table that shares the full pages of a prompt; the page that answers go on writing is copied."""
        full = len(prompt.request.prompt) // PAGE
        for page in prompt.table[:full]:
            self.pages.use(page)
        return [*prompt.table[:full], *(self.pages.copy(page) for page in prompt.table[full:])]

    def _new_answer(self, request: Request, index: int, table: list[int]) -> Growing:
        how = request.how
        seed = None if how.sampling_seed is None else [how.sampling_seed, index]
        text = TextStream(self._tokenizer, how.stop) if how.stop or request.reader else None
        return Growing(request, index, table, np.random.default_rng(seed), text=text)

    def _extend(self, answers: list[Growing], logits: list[Tensor]) -> None:
        """Draw a token for each answer and finish those that end with it."""
        if not answers:
            return
        logits_NV = logits[0] if len(logits) == 1 else torch.cat(logits)
        for answer, drawn in zip(answers, draw_next(answers, logits_NV), strict=True):
            if isinstance(drawn, Drawn):
                answer.take(drawn.token, drawn.drawn_logp)
                self._counts["new_tokens"] += 1
            else:
                answer.request.fail(drawn)
            reason = None if answer.request.cancelled else self._reason(answer)
            if reason is not None:
                self._finish(answer, reason)

    def _reason(self, answer: Growing) -> Reason | None:
        """Return why an answer ends with its last token; None if it goes on."""
        if answer.tokens[-1] in self.end_ids or (answer.text is not None and answer.text.stopped):
            return "stop"
        is_full = len(answer.tokens) >= answer.request.how.max_new_tokens or answer.length > self.max_positions
        return "length" if is_full else None

    def _finish(self, answer: Growing, reason: Reason) -> None:
        self.answers.remove(answer)
        self.pages.keep(answer.sequence[:-1], answer.table, self.mark_of(answer.request.shaping.adapter))
        self.release(answer.table)
        answer.finish(reason, self._tokenizer, self.version)

    def release(self, table: list[int]) -> None:
        """Take a user away from the pages of a sequence."""
        # Last pages first: of an unused chain the end is dropped before its beginning.
        for page in reversed(table):
            self.pages.release(page)


def share_page(prompt: tuple[int, ...], other: tuple[int, ...], known: int) -> bool:
    """Tell whether the next page of `prompt` is among those that are being computed for `other`."""
    end = (known // PAGE + 1) * PAGE
    return end <= len(other) and end < len(prompt) and prompt[:end] == other[:end]
