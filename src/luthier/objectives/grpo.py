"""Group relative policy optimization, with and without its normalizations."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.registry import OBJECTIVES
from luthier.objectives.policy_gradient import Aggregation
from luthier.objectives.rollouts import Coefficient, RolloutSettings


@OBJECTIVES.register("grpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Grpo(RolloutSettings):
    """Several answers to each prompt, compared with their mean; a mean over tokens of each answer, then over answers.

    arXiv:2402.03300: equation 3 is the loss, equation 4 its estimate k3 of the KL divergence; advantages are
    (reward - mean) / deviation (section 4.1.2), the coefficient is that of section 4.2.
    """

    kl_coef: Coefficient = 0.04


@OBJECTIVES.register("dr_grpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class DrGrpo(RolloutSettings):
    """GRPO done right: without the two divisions that favour long wrong answers and prompts of a certain difficulty.

    arXiv:2503.20783, section 3.2: advantages are reward - mean, and tokens are added up and divided by a number that
    does not depend on them, the most tokens that an answer may have. No KL term, as there.
    """

    aggregation: Aggregation = "limit"
    scale_rewards: bool = False
