"""Direct preference optimization and its relatives: two answers to one prompt, and a reference that stays.

Shapes: N predictions, S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from luthier.core.protocols import Need, Read
from luthier.core.registry import OBJECTIVES
from luthier.core.types import RowKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores

PairLoss = Literal["sigmoid", "hinge", "ipo", "robust"]


@OBJECTIVES.register("dpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Dpo:
    """Prefer the chosen answer to the rejected one by more than the reference does; the mean over pairs.

    With m = (log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected)), answers summed over tokens, the
    loss of a pair is -log sigmoid(beta m): arXiv:2305.18290, equation 7.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    reads: ClassVar[frozenset[Read]] = frozenset({"logp"})
    rows: ClassVar[RowKind] = "pair"
    segments_per_unit: ClassVar[int] = 2
    rate_factor: ClassVar[float] = 0.1
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the policy is held to the reference."""
    loss: PairLoss = "sigmoid"
    """sigmoid (DPO), hinge (SLiC), ipo (means over tokens instead of sums), robust (unbiased under flipped labels)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose label is assumed to be flipped; for sigmoid (then cDPO) and robust."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's negative log-likelihood, mean over its tokens, added to the loss."""

    def __post_init__(self) -> None:
        if self.label_smoothing and self.loss not in _SMOOTHED:
            raise ValueError(f"label_smoothing has no meaning for the loss {self.loss}; leave one of them out")

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the number of pairs."""
        return batch.weight.new_tensor(batch.num_segments // 2)

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over pairs, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        assert "ref_logp" in batch.streams, "the trainer annotates batches with the reference's log-probabilities"
        length_S = batch.sum_by_segment(batch.weight)
        logp_S = batch.sum_by_segment(scores.logp * batch.weight)
        ratio_S = logp_S - batch.sum_by_segment(batch.streams["ref_logp"] * batch.weight)
        ratio_S2 = (ratio_S / length_S if self.loss == "ipo" else ratio_S).view(-1, 2)
        loss_P = _LOSSES[self.loss](ratio_S2[:, 0] - ratio_S2[:, 1], self.beta, self.label_smoothing)
        if self.sft_weight:
            loss_P = loss_P - self.sft_weight * (logp_S / length_S).view(-1, 2)[:, 0]
        return Loss(loss_P.sum(), _watched(self.beta * ratio_S.detach(), logp_S.detach(), self.count(batch)))


def _watched(reward_S: Tensor, logp_S: Tensor, count: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return rewards (beta times log-ratio) and log-probabilities, as sums over pairs."""
    chosen_P, rejected_P = reward_S.view(-1, 2).unbind(1)
    margin_P = chosen_P - rejected_P
    return {
        "rewards/chosen": (chosen_P.sum(), count),
        "rewards/rejected": (rejected_P.sum(), count),
        "rewards/margins": (margin_P.sum(), count),
        "rewards/accuracies": ((margin_P > 0).sum(), count),
        "logps/chosen": (logp_S[0::2].sum(), count),
        "logps/rejected": (logp_S[1::2].sum(), count),
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


_LOSSES: Mapping[PairLoss, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
}
_SMOOTHED: frozenset[PairLoss] = frozenset({"sigmoid", "robust"})
