"""Log-probabilities of endings behind beginnings: by the decoder, which computes a shared beginning once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.core.types import Segment
from luthier.data.pack import pack
from luthier.engines.local import LocalEngine

if TYPE_CHECKING:
    from luthier.evaluation.subject import Subject

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a beginning, and of the ending behind it; neither is empty."""
_AT_ONCE = 8


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
        return [_greedy(subject, pair) for pair in pairs]
    return _packed(subject, pairs)


def _packed(subject: Subject, pairs: Sequence[Pair]) -> list[list[tuple[float, bool]]]:
    """Score by packed forward passes, for models that our decoder does not run."""
    found: list[list[tuple[float, bool]]] = []
    for start in range(0, len(pairs), _AT_ONCE):
        units = [
            [Segment(tokens=[*beginning, *ending], weight=[0.0] * len(beginning) + [1.0] * len(ending))]
            for beginning, ending in pairs[start : start + _AT_ONCE]
        ]
        with torch.no_grad():
            logp_N = subject.policy(pack(units).to(subject.model.device)).logp
        sizes = [len(ending) for _, ending in pairs[start : start + _AT_ONCE]]
        found += [[(value, False) for value in part.tolist()] for part in logp_N.split(sizes)]
    return found


def _greedy(subject: Subject, pair: Pair) -> list[tuple[float, bool]]:
    beginning, ending = pair
    ids = torch.tensor([[*beginning, *ending]], device=subject.model.device)
    with torch.no_grad():
        logits_TV = subject.model(input_ids=ids).logits[0, len(beginning) - 1 : -1].float()
    logp_T = torch.log_softmax(logits_TV, -1).gather(1, ids[0, len(beginning) :, None])[:, 0]
    best_T = logits_TV.argmax(-1) == ids[0, len(beginning) :]
    return list(zip(logp_T.tolist(), best_T.tolist(), strict=True))
