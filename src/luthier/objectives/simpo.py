"""SimPO: two answers to one prompt, compared by their mean log-probability, without a reference.

Shapes: S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from luthier.core.registry import OBJECTIVES
from luthier.objectives.pairs import PairSettings, both, pair_loss, sums_and_means, watched

if TYPE_CHECKING:
    from luthier.core.batch import Loss, PackedBatch, Scores


@OBJECTIVES.register("simpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Simpo(PairSettings):
    """Make the chosen answer more probable than the rejected one, an average token, by a margin; the mean over pairs.

    With d the difference of the mean log-probabilities of their tokens, the loss of a pair is
    -log sigmoid(beta d - gamma): arXiv:2405.14734, equation 6.
    """

    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the difference."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """What beta x difference should exceed; where others ask for gamma / beta, multiply that by beta."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose label is assumed to be flipped."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's negative log-likelihood, mean over its tokens; 1 gives CPO-SimPO."""

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over pairs, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        logp_S, mean_logp_S = sums_and_means(batch, scores.logp)
        chosen_P, rejected_P = both(mean_logp_S)
        margin_P = chosen_P - rejected_P - self.gamma / self.beta
        loss_P = pair_loss("sigmoid", margin_P, self.beta, self.label_smoothing) - self.sft_weight * chosen_P
        return Loss(loss_P.sum(), watched(self.beta * mean_logp_S, logp_S, self.count(batch)))
