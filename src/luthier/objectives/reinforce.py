"""REINFORCE with the other answers, or the whole rollout, as what an answer is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.registry import OBJECTIVES
from luthier.objectives.policy_gradient import Aggregation, Baseline, Surrogate
from luthier.objectives.rollouts import Coefficient, KlPlace, RolloutSettings


@OBJECTIVES.register("rloo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Rloo(RolloutSettings):
    """REINFORCE, leaving one out: each answer is compared with the mean of the others; the mean over answers.

    arXiv:2402.14740: the gradient of a whole answer's log-probability times its reward less the mean reward of the
    others; rewards are lowered by the KL penalty of the answer, whose weight differs between the paper's tasks and is
    TRL's here.
    """

    surrogate: Surrogate = "plain"
    aggregation: Aggregation = "sums"
    baseline: Baseline = "others"
    scale_rewards: bool = False
    kl_coef: Coefficient = 0.05
    kl_in: KlPlace = "answer"


@OBJECTIVES.register("reinforce++")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforcePlusPlus(RolloutSettings):
    """PPO without a critic: advantages are rewards, brought to mean 0 and deviation 1 over all tokens of a step.

    arXiv:2501.03262: the advantage of a token is the reward less the KL penalties from there on, and is normalized over
    the whole rollout (equations 8 to 10 of version 2); the loss is PPO's. baseline: group is REINFORCE++-baseline.
    """

    smallest_group: ClassVar[int] = 1
    whitens: ClassVar[bool] = True
    aggregation: Aggregation = "tokens"
    baseline: Baseline = "none"
    scale_rewards: bool = False
    kl_coef: Coefficient = 0.01
    kl_in: KlPlace = "token"
