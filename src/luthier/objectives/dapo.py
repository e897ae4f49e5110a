"""Two answers to groups without difference: other prompts (DAPO), or other groups again (DUPO)."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.registry import OBJECTIVES
from luthier.objectives.policy_gradient import Aggregation
from luthier.objectives.rollouts import Above, EqualRewards, RolloutSettings


@OBJECTIVES.register("dapo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Dapo(RolloutSettings):
    """Decoupled bounds and dynamic sampling: all tokens count alike, and every group has answers of both kinds.

    arXiv:2503.14476: the loss is equation 8 with the bounds of section 4.1, a mean over all tokens (equation 12), and
    prompts are answered until enough groups differ in reward (equation 11). No KL term (section 2.3).
    """

    clip_high: Above = 0.28
    aggregation: Aggregation = "tokens"
    on_equal_rewards: EqualRewards = "resample"


@OBJECTIVES.register("dupo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Dupo(RolloutSettings):
    """Duplicating sampling: as dapo, but groups without difference make room for copies of others of the same step.

    arXiv:2507.02592 (WebSailor): loss and bounds are those of DAPO; places of groups without difference are filled with
    random other groups of the batch, so that nothing is answered again; 2 to 3 times faster than dynamic sampling.
    """

    clip_high: Above = 0.28
    aggregation: Aggregation = "tokens"
    on_equal_rewards: EqualRewards = "duplicate"
