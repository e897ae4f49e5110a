"""What objectives read of whole predicted distributions, one chunk of logits at a time.

Shapes: N predictions, C one chunk of them, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from luthier.core.anatomy import at_work, plain_model
from luthier.core.batch import Scores
from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.protocols import Read

WIDE: frozenset[Read] = frozenset({"mean_logp", "top_entropy", "divergence", "correct"})
"""Reads that need the logits themselves."""
MOST_PROBABLE = 20
"""Tokens whose entropy is "top_entropy"."""


@dataclass(frozen=True, slots=True)
class Head:
    """Hidden states [C, D] -> logits [C, V], float32 or wider: an output head as it works, its scale and its cap."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: nn.Module, temperature: float = 1.0) -> Head:
        """Return the head of a transformers or peft model; logits are divided by the temperature.

        cap/T tanh((scale/T) z / (cap/T)) = cap tanh(scale z / cap) / T: divided behind the cap, as in sampling.
        """
        plain = plain_model(model)
        config = plain.config
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        softcap = None if softcap is None else softcap / temperature
        return cls(at_work(plain.get_output_embeddings()), scale / temperature, softcap)

    @property
    def is_plain(self) -> bool:
        """Tell whether it is a linear layer and nothing else."""
        return type(self.module) is nn.Linear

    def __call__(self, hidden_CD: Tensor) -> Tensor:
        """Return logits."""
        if isinstance(self.module, nn.Linear):
            bias = self.module.bias
            bias_V = None if bias is None else bias.to(hidden_CD.dtype)
            logits_CV = F.linear(hidden_CD, self.module.weight.to(hidden_CD.dtype), bias_V)
        else:
            logits_CV = self.module(hidden_CD)
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)) * self.scale
        return logits_CV if self.softcap is None else self.softcap * torch.tanh(logits_CV / self.softcap)


def frozen_head(model: nn.Module) -> Head:
    """Return the head of a model that is compared with. Raises ModelError when an adapter sits on it."""
    head = Head.of(model)
    if not head.is_plain:
        raise ModelError(
            "use_asft_loss compares whole distributions, which needs the head of the reference as it was, but an "
            "adapter sits on it; leave the head out of lora_target",
            code="model_reference",
        )
    return head


def read_distribution(
    head: Head,
    hidden_ND: Tensor,
    targets_N: Tensor,
    reads: frozenset[Read],
    *,
    rows: int,
    other: tuple[Head, Tensor] | None = None,
) -> Scores:
    """Return log-probability, entropy and what `reads` names more, [N] each, float32 or wider, in nats.

    `rows`: C; `other`: head and hidden states [N, E] of the model that "divergence" compares with. Chunks are computed
    again in the backward pass.
    """
    wanted: list[Read] = [name for name in _READERS if name in reads]

    def chunk(hidden_CD: Tensor, targets_C: Tensor, other_CE: Tensor | None) -> tuple[Tensor, ...]:
        logp_CV = torch.log_softmax(head(hidden_CD), -1)
        with torch.no_grad():
            theirs_CV = None if other is None or other_CE is None else torch.log_softmax(other[0](other_CE), -1)
        return tuple(_READERS[name](logp_CV, targets_C, theirs_CV) for name in wanted)

    parts: list[tuple[Tensor, ...]] = []
    for i in range(0, max(1, len(targets_N)), rows):
        here = slice(i, i + rows)
        given = hidden_ND[here], targets_N[here], None if other is None else other[1][here]
        parts.append(checkpoint(chunk, *given, use_reentrant=False) if torch.is_grad_enabled() else chunk(*given))  # pyright: ignore[reportArgumentType]
    found: dict[str, Any] = {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(wanted)}
    found.setdefault("logp", hidden_ND.new_zeros(0, dtype=torch.float32))
    return Scores(**found)


# ---- from log-probabilities [C, V], targets [C] and the log-probabilities of another model [C, V]


def _logp(logp_CV: Tensor, targets_C: Tensor, _: Tensor | None) -> Tensor:
    return logp_CV.gather(1, targets_C[:, None])[:, 0]


def _entropy(logp_CV: Tensor, _: Tensor, __: Tensor | None) -> Tensor:
    return -(logp_CV.exp() * logp_CV).sum(-1)


def _mean_logp(logp_CV: Tensor, _: Tensor, __: Tensor | None) -> Tensor:
    return logp_CV.mean(-1)


def _top_entropy(logp_CV: Tensor, _: Tensor, __: Tensor | None) -> Tensor:
    """Entropy of the most probable tokens alone, brought to sum 1; without gradient."""
    top_CK = logp_CV.detach().topk(min(MOST_PROBABLE, logp_CV.shape[-1]), dim=-1).values
    return _entropy(torch.log_softmax(top_CK, -1), _, None)


def _correct(logp_CV: Tensor, targets_C: Tensor, _: Tensor | None) -> Tensor:
    return (logp_CV.detach().argmax(-1) == targets_C).float()


def _divergence(logp_CV: Tensor, _: Tensor, theirs_CV: Tensor | None) -> Tensor:
    """KL(other | this): sum of q (log q - log p)."""
    assert theirs_CV is not None, "there is no other model to compare with"
    return (theirs_CV.exp() * (theirs_CV - logp_CV)).sum(-1)


_READERS: dict[Read, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "logp": _logp,
    "entropy": _entropy,
    "mean_logp": _mean_logp,
    "top_entropy": _top_entropy,
    "correct": _correct,
    "divergence": _divergence,
}
