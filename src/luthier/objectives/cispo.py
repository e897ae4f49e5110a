"""Clipped importance weights: no token loses its gradient."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.registry import OBJECTIVES
from luthier.objectives.policy_gradient import Aggregation, Surrogate
from luthier.objectives.rollouts import Above, Below, RolloutSettings


@OBJECTIVES.register("cispo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Cispo(RolloutSettings):
    """Bound the weight of a token instead of leaving the token out; the mean over all tokens.

    arXiv:2506.13585: equation 4 is the loss, equation 5 the weight, which has no lower bound; the paper gives no number
    for the upper one, so it is DAPO's. No KL term.
    """

    surrogate: Surrogate = "weighted"
    clip_low: Below = 1.0
    clip_high: Above = 0.28
    aggregation: Aggregation = "tokens"
