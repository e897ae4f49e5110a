"""Proximal policy optimization: a critic says what was to be expected at each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from luthier.core.protocols import Need, Read
from luthier.core.registry import OBJECTIVES
from luthier.core.types import RowKind
from luthier.objectives.policy_gradient import (
    adapted_kl_coef,
    counted,
    generalized_advantages,
    group_advantages,
    kl_estimate,
    largest,
    policy_term,
    summed,
    watched,
)
from luthier.objectives.rollouts import Above, Below, Coefficient

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores

Share = Annotated[float, Field(ge=0, le=1)]


@OBJECTIVES.register("ppo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Ppo:
    """Learn from how much better a token turned out than a critic expected, which learns beside; mean over all tokens.

    The policy's loss is arXiv:1707.06347, equation 7, with advantages of arXiv:1506.02438 (equation 16); the reward of
    a token is -kl_coef (log p - log ref), and the score at the last one (arXiv:2203.02155, equation 2).
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"logp", "entropy", "value"})
    rows: ClassVar[RowKind] = "prompt"
    segments_per_unit: ClassVar[int] = 1
    rate_factor: ClassVar[float] = 0.1
    smallest_group: ClassVar[int] = 1
    usual_epochs: ClassVar[int] = 4
    usual_minibatches: ClassVar[int] = 1
    whitens: ClassVar[bool] = True
    on_equal_rewards: ClassVar[Literal["keep", "drop", "resample", "duplicate"]] = "keep"
    clip_low: Below = 0.2
    """The ratio's lower bound is 1 minus this."""
    clip_high: Above = 0.2
    """The ratio's upper bound is 1 plus this."""
    gamma: Share = 1.0
    """What a reward one token later is worth now."""
    lam: Share = 0.95
    """How far rewards themselves are believed: 1 takes what came, 0 what the critic expects of the next token."""
    value_coef: Coefficient = 0.1
    """Weight of the critic's loss."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """How far values may move from those of the rollout before their gradient ends; none lets them."""
    kl_coef: Coefficient = 0.05
    """How strongly the policy is held to the reference; 0 needs no reference."""
    kl_in: Literal["token", "loss"] = "token"
    """Where it is held: by less reward for each token, or by a term of the loss."""
    kl_estimate: Literal["k2", "k3"] = "k3"
    """The term of the loss: half the square of the log-ratio, or the estimate that is right on average."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Nats an answer that kl_coef is moved towards step by step; none keeps it as it is."""
    kl_horizon: Annotated[float, Field(gt=0)] = 10000.0
    """Answers in which kl_coef may change by a fifth."""
    whiten_rewards: bool = False
    """Bring the rewards of all tokens of a step to deviation 1, their mean kept, before credit is given."""
    entropy_coef: Coefficient = 0.0
    """Weight of the entropy, which is taken from the loss."""

    def __post_init__(self) -> None:
        if self.kl_target is not None and (self.kl_in == "loss" or not self.kl_coef):
            raise ValueError("kl_target moves the kl_coef of rewards; set kl_in: token and a kl_coef above 0")

    @property
    def needs(self) -> frozenset[Need]:
        """Rollouts, a critic, and a reference where the policy is held to one."""
        return frozenset({"rollouts", "value", "reference"}) if self.kl_coef else frozenset({"rollouts", "value"})

    @property
    def penalty(self) -> Literal["none", "answer", "token"]:
        """Where the reward is lowered."""
        return "token" if self.kl_coef and self.kl_in == "token" else "none"

    def next_kl_coef(self, current: float, measured: float, num_answers: int) -> float:
        """Return the coefficient of the next step."""
        if self.kl_target is None:
            return current
        return adapted_kl_coef(current, measured, self.kl_target, num_answers, self.kl_horizon)

    def advantages(self, rewards_G: Tensor) -> Tensor:
        """Return the score of each answer, [G], float64; `credit` compares it with the critic's values."""
        return group_advantages(rewards_G, "none", scale=False)

    def credit(self, advantage: Tensor, penalty_T: Tensor, value_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return advantage and return of each token, [T]; `advantage` is the score, which stands at the last token."""
        assert value_T is not None, "the collector asks the critic"
        reward_T = -penalty_T.double()
        reward_T[-1:] += advantage
        advantage_T = generalized_advantages(reward_T, value_T, self.gamma, self.lam)
        return advantage_T, advantage_T + value_T

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the number of tokens."""
        return counted(batch, "tokens")

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over tokens of the policy's and the critic's loss, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        term = policy_term(
            batch, scores.logp, ratio="token", surrogate="clipped", low=self.clip_low, high=self.clip_high
        )
        value_loss_N, metrics = self._value_loss(scores, batch)
        loss_N = term.loss + self.value_coef * value_loss_N
        if self.kl_coef and self.kl_in == "loss":
            assert "ref_logp" in batch.streams, "the collector adds the reference's log-probabilities"
            loss_N = loss_N + self.kl_coef * kl_estimate(self.kl_estimate, scores.logp, batch.streams["ref_logp"])
        if self.entropy_coef:
            assert scores.entropy is not None, "the policy says its entropy"
            loss_N = loss_N - self.entropy_coef * scores.entropy
        metrics = {**watched(batch, term, scores.logp, scores.entropy), **metrics}
        return Loss(summed(batch, "tokens", loss_N), metrics, largest(term.ratio))

    def _value_loss(self, scores: Scores, batch: PackedBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return half the square of the critic's error at each token, [N], the larger of free and bounded values'."""
        import torch

        assert scores.value is not None, "the policy has a critic"
        value_N, return_N, old_N = scores.value, batch.streams["return"], batch.streams["old_value"]
        free_N = (value_N - return_N) ** 2
        loss_N, is_clipped_N = free_N, free_N < 0
        if self.value_clip is not None:
            bounded_N = (old_N + (value_N - old_N).clamp(-self.value_clip, self.value_clip) - return_N) ** 2
            loss_N, is_clipped_N = torch.maximum(free_N, bounded_N), bounded_N > free_N
        count, error_N = batch.weight.sum(), (return_N - value_N).detach()
        spread = _squares(return_N, batch.weight)
        metrics = {
            "value/loss": (0.5 * (loss_N.detach() * batch.weight).sum(), count),
            "value/clip_fraction": ((is_clipped_N * batch.weight).sum(), count),
            "value/explained_variance": (spread - _squares(error_N, batch.weight), spread),
        }
        return 0.5 * loss_N, metrics


def _squares(x_N: Tensor, weight_N: Tensor) -> Tensor:
    """Return the weighted sum of squared distances from the mean, a scalar."""
    mean = (x_N * weight_N).sum() / weight_N.sum().clamp(min=1e-6)
    return ((x_N - mean) ** 2 * weight_N).sum()
