"""Log-probabilities of endings behind beginnings: by the decoder, which computes a shared beginning once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.core.progress import following, within
from luthier.core.types import Segment
from luthier.data.pack import pack
from luthier.engines.local import LocalEngine

if TYPE_CHECKING:
    from luthier.evaluation.subject import Subject

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a beginning, and of the ending behind it; neither is empty."""
TOKENS_AT_ONCE = 4096
"""Of packed rows, a beginning that two neighbours share counted once."""


def logprobs(subject: Subject, pairs: Sequence[Pair], *, top: int = 0) -> list[list[tuple[float, bool]]]:
    """Return for each token of each ending its log-probability in nats, and whether it is the most probable one.

    `top` is 1 where the second is asked for; False everywhere otherwise.
    """
    if isinstance(subject.engine, LocalEngine):
        prompts = [[*beginning, *ending] for beginning, ending in pairs]
        firsts = [len(beginning) for beginning, _ in pairs]
        scored = subject.engine.score(prompts, first=firsts, top=top)
        return [[(each.logp, bool(each.top) and each.top[0][0] == each.token) for each in row] for row in scored]
    if top:
        return [_greedy(subject, pair) for pair in following(pairs)]
    return _packed(subject, pairs)


def _packed(subject: Subject, pairs: Sequence[Pair]) -> list[list[tuple[float, bool]]]:
    """Score by packed forward passes, for models that our decoder does not run."""
    found: list[list[tuple[float, bool]]] = []
    for batch in _batches(pairs):
        units = [
            [Segment(tokens=[*beginning, *ending], weight=[0.0] * len(beginning) + [1.0] * len(ending))]
            for beginning, ending in batch
        ]
        with torch.no_grad():
            logp_N = subject.policy(pack(units).to(subject.model.device)).logp
        found += [[(value, False) for value in part.tolist()] for part in logp_N.split([len(e) for _, e in batch])]
        within(len(found), len(pairs))
    return found


def _batches(pairs: Sequence[Pair]) -> list[list[Pair]]:
    batches: list[list[Pair]] = []
    room, before = 0, list[int]()
    for beginning, ending in pairs:
        tokens = [*beginning, *ending]
        shared = next((i for i, (a, b) in enumerate(zip(tokens, before, strict=False)) if a != b), 0)
        if not batches or len(tokens) - shared > room:
            batches.append([])
            room, shared = TOKENS_AT_ONCE, 0
        batches[-1].append((beginning, ending))
        room, before = room - (len(tokens) - shared), tokens
    return batches


def _greedy(subject: Subject, pair: Pair) -> list[tuple[float, bool]]:
    """Score one pair by a plain forward pass that keeps all logits, [E, V] of E tokens of the ending."""
    beginning, ending = pair
    ids = torch.tensor([[*beginning, *ending]], device=subject.model.device)
    with torch.no_grad():
        # Virtual tokens may have logits too, in front of those of the ids.
        logits_EV = subject.model(input_ids=ids).logits[0, -len(ending) - 1 : -1].float()
    targets_E = ids[0, len(beginning) :]
    logp_E = torch.log_softmax(logits_EV, -1).gather(1, targets_E[:, None])[:, 0]
    return list(zip(logp_E.tolist(), (logits_EV.argmax(-1) == targets_E).tolist(), strict=True))
