"""Group sequence policy optimization: one ratio for a whole answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.core.registry import OBJECTIVES
from luthier.objectives.policy_gradient import Ratio
from luthier.objectives.rollouts import Above, Below, RolloutSettings


@OBJECTIVES.register("gspo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Gspo(RolloutSettings):
    """Answers are taken or left as a whole, by the geometric mean of their tokens' ratios; the mean over answers.

    arXiv:2507.18071: equation 5 is the loss, equation 6 the advantage, equation 7 the ratio; bounds and four updates of
    each rollout are those of section 5.1. A hundred times more tokens are clipped than by grpo (section 5.2).
    """

    usual_minibatches: ClassVar[int] = 4
    ratio: Ratio = "sequence"
    clip_low: Below = 3e-4
    clip_high: Above = 4e-4


@OBJECTIVES.register("gspo_token")
@dataclass(frozen=True, kw_only=True, slots=True)
class GspoToken(RolloutSettings):
    """As gspo, for advantages that differ between the tokens of an answer; where they do not, it is the same.

    arXiv:2507.18071: equation 13 is the loss, equation 14 the ratio.
    """

    usual_minibatches: ClassVar[int] = 4
    ratio: Ratio = "sequence_token"
    clip_low: Below = 3e-4
    clip_high: Above = 4e-4
