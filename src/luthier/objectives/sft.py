"""Pretraining and supervised fine-tuning: weighted negative log-likelihood, and losses that weigh tokens by what the
policy thinks of them.

Shapes: N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from luthier.core.registry import OBJECTIVES
from luthier.core.types import RowKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores
    from luthier.core.protocols import Need, Read

TokenLoss = Literal["nll", "dft", "asft", "eaft"]
USUAL_ENTROPY = 3.0
"""In nats: where the weight of eaft is 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLosses:
    """What supervised objectives share: how the loss of a token is made of its probability."""

    segments_per_unit: ClassVar[int] = 1
    rate_factor: ClassVar[float] = 1.0
    token_loss: TokenLoss = "nll"
    """Of a token: nll is -log p, dft that times p (arXiv:2508.05629), asft dft held to the reference by KL
    (arXiv:2509.23753), eaft nll times the entropy of the prediction (arXiv:2601.02151)."""
    asft_alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the KL of asft."""
    eaft_alpha: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of the entropy of eaft."""
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the loss that asks for every token of the vocabulary alike (arXiv:1512.00567); for nll."""

    def __post_init__(self) -> None:
        if self.label_smoothing_factor and self.token_loss != "nll":
            raise ValueError(
                f"label_smoothing_factor is for plain log-likelihood, not for {self.token_loss} "
                f"(use_{self.token_loss}_loss); leave one of them out"
            )

    @property
    def needs(self) -> frozenset[Need]:
        """Return the reference's distributions for asft."""
        needs: frozenset[Need] = frozenset({"distribution"}) if self.token_loss == "asft" else frozenset()
        return needs

    @property
    def reads(self) -> frozenset[Read]:
        """Return log-probabilities, and what the loss looks at beside them."""
        smoothed: frozenset[Read] = frozenset({"mean_logp"}) if self.label_smoothing_factor else frozenset()
        return _READS[self.token_loss] | smoothed

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the sum of token weights."""
        return batch.weight.sum()

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum of weight x loss over tokens, in nats; what was learned from, and its plain nll beside it."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        loss_N = _LOSSES[self.token_loss](scores, self)
        if self.token_loss == "nll":
            return Loss((loss_N * batch.weight).sum())
        nll = -(scores.logp.detach() * batch.weight).sum()
        metrics = {"nll": (nll, self.count(batch))}
        if scores.divergence is not None:
            metrics["kl"] = ((scores.divergence.detach() * batch.weight).sum(), self.count(batch))
        return Loss((loss_N * batch.weight).sum(), metrics)


def _nll(scores: Scores, settings: TokenLosses) -> Tensor:
    """With share e: -(1 - e) log p - e x mean of log p over the vocabulary."""
    if scores.mean_logp is None:
        return -scores.logp
    share = settings.label_smoothing_factor
    return -(1 - share) * scores.logp - share * scores.mean_logp


def _dft(scores: Scores, _: TokenLosses) -> Tensor:
    """arXiv:2508.05629, equation 9: the probability weighs the token and has no gradient of its own."""
    return -scores.logp * scores.logp.detach().exp()


def _asft(scores: Scores, settings: TokenLosses) -> Tensor:
    """dft + alpha x KL(reference | policy)."""
    assert scores.divergence is not None, "asft reads the divergence from the reference"
    return _dft(scores, settings) + settings.asft_alpha * scores.divergence


def _eaft(scores: Scores, settings: TokenLosses) -> Tensor:
    """-log p x (H / 3)^alpha, H of the 20 most probable tokens: what the policy is sure of counts little."""
    assert scores.top_entropy is not None, "eaft reads the entropy of the most probable tokens"
    return -scores.logp * (scores.top_entropy.detach() / USUAL_ENTROPY) ** settings.eaft_alpha


_LOSSES: dict[TokenLoss, Callable[[Scores, TokenLosses], Tensor]] = {
    "nll": _nll,
    "dft": _dft,
    "asft": _asft,
    "eaft": _eaft,
}
_READS: dict[TokenLoss, frozenset[Read]] = {
    "nll": frozenset({"logp"}),
    "dft": frozenset({"logp"}),
    "asft": frozenset({"logp", "divergence"}),
    "eaft": frozenset({"logp", "top_entropy"}),
}


@OBJECTIVES.register("sft")
@dataclass(frozen=True, kw_only=True, slots=True)
class Sft(TokenLosses):
    """Learn to give the answers of the data; the mean over all trained tokens of an optimizer step."""

    rows: ClassVar[RowKind] = "answer"


@OBJECTIVES.register("pt")
@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain(TokenLosses):
    """Learn every token of plain text; the mean over all trained tokens of an optimizer step."""

    rows: ClassVar[RowKind] = "text"
