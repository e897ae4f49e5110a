"""What objectives over pairs share: losses of a margin, and what is worth watching.

Shapes: N predictions, S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.protocols import Need, Read
from luthier.core.types import RowKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from luthier.core.batch import PackedBatch

PairLoss = Literal["sigmoid", "hinge", "ipo", "robust"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSettings:
    """What every objective over pairs has: two answers to one prompt, without a reference unless it says so."""

    reads: ClassVar[frozenset[Read]] = frozenset({"logp"})
    rows: ClassVar[RowKind] = "pair"
    segments_per_unit: ClassVar[int] = 2
    rate_factor: ClassVar[float] = 0.1

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing beside the rows."""
        return frozenset()

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the number of pairs."""
        return num_pairs(batch)


def pair_loss(kind: PairLoss, margin_P: Tensor, beta: float, flipped: float = 0.0) -> Tensor:
    """Return the loss of each pair, [P]; `flipped` is the share of labels assumed to be wrong."""
    return _LOSSES[kind](margin_P, beta, flipped)


def classifier_loss(above_S: Tensor) -> Tensor:
    """Return the loss of a classifier that calls answers good above 0 and bad below it, both answers of a pair, [P].

    arXiv:2404.04656, binary cross-entropy on rewards that are shifted.
    """
    from torch.nn.functional import logsigmoid

    chosen_P, rejected_P = both(above_S)
    return -logsigmoid(chosen_P) - logsigmoid(-rejected_P)


def check_smoothing(kind: PairLoss, label_smoothing: float) -> None:
    """Raise ValueError where label smoothing has no meaning for the loss."""
    if label_smoothing and kind not in _SMOOTHED:
        raise ValueError(f"label_smoothing has no meaning for the loss {kind}; leave one of them out")


def num_pairs(batch: PackedBatch) -> Tensor:
    """Return the number of pairs, a scalar."""
    return batch.weight.new_tensor(batch.num_segments // 2)


def both(x_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return what belongs to the chosen and to the rejected answers, [P] each."""
    chosen_P, rejected_P = x_S.view(-1, 2).unbind(1)
    return chosen_P, rejected_P


def sums_and_means(batch: PackedBatch, x_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum over the tokens of each segment, and their weighted mean, [S] each."""
    sum_S = batch.sum_by_segment(x_N * batch.weight)
    return sum_S, sum_S / batch.sum_by_segment(batch.weight)


def beyond_shorter(batch: PackedBatch, alpha: float) -> Tensor | float:
    """Return 1 for the tokens of an answer up to the length of the shorter one of its pair, `alpha` behind, [N]."""
    if alpha == 1:
        return 1.0
    import torch  # which reading settings does not need

    length_S = batch.sum_by_segment(torch.ones_like(batch.weight)).long()
    shorter_S = length_S.view(-1, 2).amin(1).repeat_interleave(2)
    # Predictions lie in the order of segments: a token's place is its index less those of the segments before it.
    first_S = length_S.cumsum(0) - length_S
    place_N = torch.arange(len(batch.weight), device=batch.weight.device) - first_S[batch.segment_ids]
    return torch.where(place_N < shorter_S[batch.segment_ids], 1.0, alpha).to(batch.weight)


def watched(reward_S: Tensor, logp_S: Tensor, count: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return rewards, their margins, and log-probabilities of whole answers, as sums over pairs."""
    logps = {f"logps/{name}": (x_P.sum(), count) for name, x_P in zip(_SIDES, both(logp_S.detach()), strict=True)}
    return {**watched_rewards(reward_S, count), **logps}


def watched_rewards(reward_S: Tensor, count: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return rewards of both answers, and how often and how far the chosen one is ahead, as sums over pairs.

    Equal rewards count half, so that a policy that is its own reference is right half of the time.
    """
    chosen_P, rejected_P = both(reward_S.detach())
    margin_P = chosen_P - rejected_P
    return {
        "rewards/chosen": (chosen_P.sum(), count),
        "rewards/rejected": (rejected_P.sum(), count),
        "rewards/margins": (margin_P.sum(), count),
        "rewards/accuracies": ((margin_P > 0).sum() + 0.5 * (margin_P == 0).sum(), count),
    }


def _sigmoid(margin_P: Tensor, beta: float, flipped: float) -> Tensor:
    """arXiv:2305.18290, equation 7; with label smoothing the conservative form of its authors."""
    from torch.nn.functional import logsigmoid

    return -(1 - flipped) * logsigmoid(beta * margin_P) - flipped * logsigmoid(-beta * margin_P)


def _robust(margin_P: Tensor, beta: float, flipped: float) -> Tensor:
    """arXiv:2403.00409: the estimate whose mean over flipped labels is the loss on true ones."""
    from torch.nn.functional import logsigmoid

    true, false = logsigmoid(beta * margin_P), logsigmoid(-beta * margin_P)
    return (-(1 - flipped) * true + flipped * false) / (1 - 2 * flipped)


def _hinge(margin_P: Tensor, beta: float, _: float) -> Tensor:
    """SLiC-HF, arXiv:2305.10425."""
    return (1 - beta * margin_P).relu()


def _ipo(margin_P: Tensor, beta: float, _: float) -> Tensor:
    """arXiv:2310.12036, equation 17, of means over tokens as its authors do it."""
    return (margin_P - 1 / (2 * beta)) ** 2


_SIDES = ("chosen", "rejected")
_LOSSES: Mapping[PairLoss, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
}
_SMOOTHED: frozenset[PairLoss] = frozenset({"sigmoid", "robust"})
