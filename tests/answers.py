"""Answers with given log-probabilities, for objectives."""

from __future__ import annotations

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
