"""Odds ratio preference optimization: supervised fine-tuning on the chosen answer, with the rejected one pushed away.

Shapes: S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.core.registry import OBJECTIVES
from luthier.objectives.pairs import PairSettings, both, pair_loss, sums_and_means, watched

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores

CERTAIN = -1e-6
"""Mean log-probabilities above this have these odds, a million to one, and no gradient through them."""


@OBJECTIVES.register("orpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Orpo(PairSettings):
    """Learn to give the chosen answer, and make its odds higher than those of the rejected one; the mean over pairs.

    With odds = p / (1 - p), where log p is the mean over the tokens of an answer, the loss of a pair is
    -log p(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected)): arXiv:2403.07691, equations 4 to 7.
    """

    rate_factor: ClassVar[float] = 0.2
    beta: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the odds ratio, which the paper calls lambda."""

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over pairs, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        count = self.count(batch)
        logp_S, mean_logp_S = sums_and_means(batch, scores.logp)
        nll_P = -both(mean_logp_S)[0]
        chosen_P, rejected_P = both(_log_odds(mean_logp_S))
        ratio_P = chosen_P - rejected_P
        ratio_loss_P = pair_loss("sigmoid", ratio_P, 1.0)
        metrics = watched(self.beta * mean_logp_S, logp_S, count)
        metrics["nll"] = (nll_P.detach().sum(), count)
        metrics["log_odds_ratio"] = (ratio_P.detach().sum(), count)
        metrics["odds_ratio_loss"] = (ratio_loss_P.detach().sum(), count)
        return Loss((nll_P + self.beta * ratio_loss_P).sum(), metrics)


def _log_odds(logp_S: Tensor) -> Tensor:
    """Return log(p / (1 - p)); 1 - p is -expm1(log p), which is exact where p is near 1."""
    below_S = logp_S.clamp(max=CERTAIN)
    return below_S - (-below_S.expm1()).log()
