"""The settings of the one formula behind grpo and its kin; the vetted ones are in files of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from luthier.core.protocols import Need, Read
from luthier.core.types import RowKind
from luthier.objectives.policy_gradient import (
    Aggregation,
    Baseline,
    Ratio,
    Surrogate,
    counted,
    group_advantages,
    kl_estimate,
    largest,
    policy_term,
    rewards_to_go,
    summed,
    watched,
)

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores

Below = Annotated[float, Field(ge=0, le=1)]
Above = Annotated[float, Field(ge=0)]
Coefficient = Annotated[float, Field(ge=0)]
EqualRewards = Literal["keep", "drop", "resample", "duplicate"]
KlPlace = Literal["loss", "answer", "token"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    """Make answers that were better than others to the same prompt more probable.

    The loss of a token is -min(r A, clip(r) A) + kl_coef k3 - entropy_coef H, with the ratio r of the policy to the one
    that answered and the advantage A of the answer.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"logp", "entropy"})
    rows: ClassVar[RowKind] = "prompt"
    segments_per_unit: ClassVar[int] = 1
    rate_factor: ClassVar[float] = 0.1
    smallest_group: ClassVar[int] = 2
    usual_epochs: ClassVar[int] = 1
    usual_minibatches: ClassVar[int] = 1
    whitens: ClassVar[bool] = False
    whiten_rewards: ClassVar[bool] = False
    ratio: Ratio = "token"
    """What it is of: token; sequence (geometric mean); sequence_token (value of the sequence, gradient of tokens)."""
    surrogate: Surrogate = "clipped"
    """clipped: no gradient where the ratio is out of bounds; weighted: the bounded ratio is a weight; plain: none."""
    clip_low: Below = 0.2
    """The ratio's lower bound is 1 minus this; 1 sets none."""
    clip_high: Above = 0.2
    """The ratio's upper bound is 1 plus this."""
    aggregation: Aggregation = "answers"
    """Mean over: answers (of means over tokens), all tokens, limit (tokens answers may have), sums (of answers)."""
    baseline: Baseline = "group"
    """Taken from rewards: the mean of all answers to the prompt, that of the others, or none."""
    scale_rewards: bool = True
    """Divide by the deviation of the rewards of the group."""
    on_equal_rewards: EqualRewards = "keep"
    """Groups of equal rewards: keep, drop, resample (answer other prompts), or duplicate (other groups stand in)."""
    kl_coef: Coefficient = 0.0
    """How strongly the policy is held to the reference; 0 needs no reference."""
    kl_in: KlPlace = "loss"
    """Where it is held: by a term of the loss (k3), or by less reward for the answer, or for each token (k1)."""
    entropy_coef: Coefficient = 0.0
    """Weight of the entropy, which is taken from the loss."""

    @property
    def needs(self) -> frozenset[Need]:
        """Rollouts, and a reference where it is held to one."""
        return frozenset({"rollouts", "reference"}) if self.kl_coef else frozenset({"rollouts"})

    @property
    def penalty(self) -> Literal["none", "answer", "token"]:
        """Where the reward is lowered."""
        return "none" if not self.kl_coef or self.kl_in == "loss" else self.kl_in

    def next_kl_coef(self, current: float, measured: float, num_answers: int) -> float:
        """Return the same coefficient: it is fixed."""
        return current

    def advantages(self, rewards_G: Tensor) -> Tensor:
        """Return the advantage of each answer of one group, [G], float64."""
        return group_advantages(rewards_G, self.baseline, scale=self.scale_rewards)

    def credit(self, advantage: Tensor, penalty_T: Tensor, value_T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the advantage of each token, [T]: the answer's, less the penalties from there on."""
        return rewards_to_go(advantage, penalty_T), None

    def count(self, batch: PackedBatch) -> Tensor:
        """Return what the loss is a mean over, a scalar."""
        return counted(batch, self.aggregation)

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over the batch, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        term = policy_term(
            batch,
            scores.logp,
            ratio=self.ratio,
            surrogate=self.surrogate,
            low=self.clip_low,
            high=self.clip_high,
        )
        loss_N = term.loss
        if self.kl_coef and self.kl_in == "loss":
            assert "ref_logp" in batch.streams, "the collector adds the reference's log-probabilities"
            loss_N = loss_N + self.kl_coef * kl_estimate("k3", scores.logp, batch.streams["ref_logp"])
        if self.entropy_coef:
            assert scores.entropy is not None, "the policy says its entropy"
            loss_N = loss_N - self.entropy_coef * scores.entropy
        metrics = watched(batch, term, scores.logp, scores.entropy)
        return Loss(summed(batch, self.aggregation, loss_N), metrics, largest(term.ratio))
