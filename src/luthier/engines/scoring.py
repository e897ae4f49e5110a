"""Prompts through the decoder without answers: log-probabilities of their tokens, and their embeddings.

Both are generators that stop behind each forward pass, so that answers can go on growing in between.

Shapes: T tokens of a chunk, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from luthier.core.progress import within
from luthier.engines.batch import PROMPT_TOKENS_PER_STEP, Batch, Job, share_page
from luthier.engines.sample import logp_of, not_finite
from luthier.engines.shaped import most_probable_of
from luthier.engines.shaping import ScoredToken
from luthier.models.decoder_parts import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROWS_OF_LOGITS = 64
"""Logits that exist at a time: with 256 thousand tokens 64 rows are 64 MiB."""
Result = TypeVar("Result")
Passes = Generator[None, None, Result]


@dataclass(slots=True, eq=False)
class _Text:
    """A prompt on its way; everything before `computed` is in its pages."""

    number: int
    tokens: tuple[int, ...]
    first: int
    """Hidden states are wanted from this place on."""
    table: list[int]
    computed: int


_Heard = Callable[[int, int, Tensor], None]
"""Hears the number of a prompt, a place, and the hidden states [T, D] of the tokens from there on."""


def score(
    batch: Batch, prompts: Sequence[tuple[int, ...]], first: Sequence[int], top: int, adapter: str | None
) -> Passes[list[list[ScoredToken]]]:
    """Return the tokens of each prompt from `first` on with their log-probabilities under the model."""
    found: list[list[ScoredToken]] = [[] for _ in prompts]
    for tokens, start, scored in zip(prompts, first, found, strict=True):
        if start == 0:
            scored.append(ScoredToken(tokens[0], 0.0))

    def hear(number: int, place: int, hidden_TD: Tensor) -> None:
        following = prompts[number][place + 1 : place + 1 + len(hidden_TD)]
        for start in range(0, len(following), ROWS_OF_LOGITS):
            part = following[start : start + ROWS_OF_LOGITS]
            found[number] += _scored(batch.decoder.logits(hidden_TD[start : start + len(part)]), part, top)

    yield from _read(batch, prompts, [max(0, start - 1) for start in first], hear, adapter)
    return found


def _scored(logits_TV: Tensor, following: tuple[int, ...], top: int) -> Iterable[ScoredToken]:
    logp_T = logp_of(logits_TV, torch.tensor(following, device=logits_TV.device))
    if not bool(torch.isfinite(logp_T).all()):
        raise not_finite()
    return map(ScoredToken, following, logp_T.tolist(), most_probable_of(logits_TV, [top] * len(following)))


def embed(batch: Batch, prompts: Sequence[tuple[int, ...]], adapter: str | None) -> Passes[Tensor]:
    """Return the mean over tokens of what the last norm makes of them, float32 [N, D]."""
    sums: dict[int, Tensor] = {}

    def hear(number: int, place: int, hidden_TD: Tensor) -> None:
        total = hidden_TD.float().sum(0)
        sums[number] = total if number not in sums else sums[number] + total

    yield from _read(batch, prompts, [0] * len(prompts), hear, adapter)
    return torch.stack([sums[number] / len(prompt) for number, prompt in enumerate(prompts)])


def _read(
    batch: Batch, prompts: Sequence[tuple[int, ...]], first: Sequence[int], hear: _Heard, adapter: str | None
) -> Passes[None]:
    """Compute prompts, several in one pass; equal beginnings once, as far as nobody wants to hear of them."""
    waiting = deque(enumerate(prompts))
    texts: list[_Text] = []
    try:
        while waiting or texts:
            _fill(batch, waiting, texts, first, adapter)
            _advance(batch, texts, hear, adapter)
            within(len(prompts) - len(waiting) - len(texts), len(prompts))
            yield
    finally:
        for text in texts:
            batch.release(text.table)


def _fill(
    batch: Batch,
    waiting: deque[tuple[int, tuple[int, ...]]],
    texts: list[_Text],
    first: Sequence[int],
    adapter: str | None,
) -> None:
    budget = PROMPT_TOKENS_PER_STEP - sum(len(text.tokens) - text.computed for text in texts)
    for _ in range(len(waiting)):
        if budget <= 0:
            return
        number, prompt = waiting.popleft()
        tokens, wanted = (*batch.virtual, *prompt), first[number] + len(batch.virtual)
        known = batch.pages.find(tokens[: wanted // PAGE * PAGE], batch.mark_of(adapter))
        if any(share_page(tokens[: wanted + 1], other.tokens, len(known) * PAGE) for other in texts):
            waiting.append((number, prompt))
            continue
        table, computed = batch.enter(known)
        texts.append(_Text(number, tokens, wanted, table, computed))
        budget -= len(tokens) - computed


def _advance(batch: Batch, texts: list[_Text], hear: _Heard, adapter: str | None) -> None:
    budget = PROMPT_TOKENS_PER_STEP
    jobs: list[Job] = []
    parts: list[tuple[_Text, int]] = []
    for text in texts:
        chunk = text.tokens[text.computed : text.computed + budget]
        if not chunk:
            break
        wanted = min(len(chunk), max(0, text.computed + len(chunk) - text.first))
        jobs.append(Job(text.table, chunk, text.computed, wanted, adapter))
        parts.append((text, wanted))
        budget -= len(chunk)
        text.computed += len(chunk)
    hidden_ND = batch.hidden(jobs)
    row = 0
    for text, wanted in parts:
        if wanted:
            place = text.computed - wanted - len(batch.virtual)
            hear(text.number, place, hidden_ND[row : row + wanted])
        row += wanted
        if text.computed == len(text.tokens):
            batch.pages.keep(text.tokens, text.table, batch.mark_of(adapter))
            batch.release(text.table)
            texts.remove(text)
