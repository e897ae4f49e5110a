"""What all answers of one update tell together: tags that are the same for every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.training.reference import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luthier.core.batch import PackedBatch


@torch.no_grad()
def mean_log_ratio(policy: Any, batches: Sequence[PackedBatch], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean over the answers of every rank of log p - log ref, summed over tokens, a scalar; 0 of none.

    The policy answers in evaluation mode. `reduce`: tensor -> its sum over all ranks.
    """
    was_training = policy.training
    policy.eval()
    sums = [((policy(batch).logp - batch.streams[STREAM]) * batch.weight).sum() for batch in batches]
    policy.train(was_training)
    zero = torch.zeros(())
    total, count = reduce(sum(sums, zero)), reduce(zero + sum(batch.num_segments for batch in batches))
    return total / count.clamp(min=1)


def with_same(batches: Sequence[PackedBatch], name: str, value: Tensor) -> list[PackedBatch]:
    """Return the batches with a tag more, one number for all of their segments."""
    return [batch.with_tag(name, value.expand(batch.num_segments)) for batch in batches]
