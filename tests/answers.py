"""Answers with given log-probabilities, for objectives."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.core.batch import Loss, PackedBatch, Scores, Spans

CHOSEN, REJECTED = (-10.0, -12.0, 4), (-14.0, -13.0, 5)
"""log p of the policy, log p of the reference, tokens: the margin is 3."""


def batch_of(*answers: tuple[float, float, int]) -> tuple[Scores, PackedBatch]:
    """Answers whose log-probabilities spread evenly over their tokens."""
    each = [(s, policy / n, ref / n) for s, (policy, ref, n) in enumerate(answers) for _ in range(n)]
    number = len(each)
    batch = PackedBatch(
        input_ids=torch.arange(number),
        position_ids=torch.arange(number),
        spans=Spans((0,), (number,), (-1,)),
        rows=torch.arange(number),
        targets=torch.arange(number),
        weight=torch.ones(number, dtype=torch.float64),
        segment_ids=torch.tensor([s for s, _, _ in each]),
        num_segments=len(answers),
        streams={"ref_logp": torch.tensor([ref for _, _, ref in each], dtype=torch.float64)},
    )
    logp = torch.tensor([policy for _, policy, _ in each], dtype=torch.float64, requires_grad=True)
    return Scores(logp=logp), batch


def means(loss: Loss) -> dict[str, float]:
    """What is logged."""
    return {name: float(total / count) for name, (total, count) in loss.metrics.items()}


def rollout_of(
    logp: Sequence[Sequence[float]],
    *,
    advantages: Sequence[float],
    old: Sequence[Sequence[float]] | None = None,
    ref: Sequence[Sequence[float]] | None = None,
    entropy: float = 1.0,
    limit: float = 8.0,
    dtype: torch.dtype = torch.float64,
    **streams: Sequence[Sequence[float]],
) -> tuple[Scores, PackedBatch]:
    """Answers with the given log-probability of every token; other streams likewise, values are all 0."""
    given = {"old_logp": old, "ref_logp": ref, "return": None, "old_value": None, **streams}
    given["advantage"] = [[a] * len(each) for a, each in zip(advantages, logp, strict=True)]
    number = sum(map(len, logp))

    def flat(x: Sequence[Sequence[float]] | None) -> torch.Tensor:
        return torch.tensor([value for each in x or [] for value in each] if x else [0.0] * number, dtype=dtype)

    wanted = {name for name, x in given.items() if x is not None} | {"return", "old_value"}
    batch = PackedBatch(
        input_ids=torch.arange(number),
        position_ids=torch.arange(number),
        spans=Spans((0,), (number,), (-1,)),
        rows=torch.arange(number),
        targets=torch.arange(number),
        weight=torch.ones(number, dtype=dtype),
        segment_ids=torch.tensor([s for s, each in enumerate(logp) for _ in each]),
        num_segments=len(logp),
        streams={name: flat(given[name]) for name in sorted(wanted)},
        tags={"limit": torch.full((len(logp),), limit, dtype=dtype)},
    )
    scores = Scores(
        logp=flat(logp).requires_grad_(),
        entropy=torch.full((number,), entropy, dtype=dtype),
        value=torch.zeros(number, dtype=dtype, requires_grad=True),
    )
    return scores, batch
