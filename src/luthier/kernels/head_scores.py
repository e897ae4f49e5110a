"""What foreign trainers read of an output head, without the logits tensor: log-probability, entropy, rank, mean logit.

Shapes: N predictions, C one chunk of them, D hidden, V vocabulary.

As in `linear_logprobs`, the gradient of a log-probability by its hidden state is made while the chunk of logits is
there. Entropy is mostly read for a log, so its gradient, and that of a trained head, make their chunks again when they
are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu, native, products
from luthier.kernels.linear_logprobs import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What can be read. Only the first two have gradients."""


@dataclass(frozen=True, slots=True)
class Head:
    """An output head: logits are `scale * (h W' + bias)`, then `softcap * tanh(logits / softcap)` where it has one."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Return logits [C, V] in float32."""
        return self.shaped(F.linear(hidden_CD, self.weight_VD, self.bias_V))

    def shaped(self, raw_CV: Tensor) -> Tensor:
        """Return logits [C, V] in float32 of the raw h W' + bias."""
        logits_CV = raw_CV.float() * self.scale
        return logits_CV if self.softcap is None else self.softcap * torch.tanh(logits_CV / self.softcap)

    def slope(self, logits_CV: Tensor) -> Tensor | float:
        """Return d logits / d raw logits."""
        return self.scale if self.softcap is None else (1 - (logits_CV / self.softcap) ** 2) * self.scale


def head_scores_reference(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, reads: Collection[str]
) -> dict[str, Tensor]:
    """Return the `FIELDS` that `reads` names, [N] each, in nats, from all logits at once. The specification.

    "log_sum_sq_probs" is log of the sum of squared probabilities; "is_top1" whether the target is the first of the most
    probable tokens.
    """
    logits_NV = head.logits(hidden_ND)
    logp_NV = torch.log_softmax(logits_NV, -1)
    make: dict[str, Callable[[], Tensor]] = {
        "log_probs": lambda: logp_NV.gather(1, targets_N[:, None])[:, 0],
        "entropy": lambda: -(logp_NV.exp() * logp_NV).sum(-1),
        "log_sum_sq_probs": lambda: torch.logsumexp(2 * logp_NV.detach(), -1),
        "mean_logits": lambda: logits_NV.detach().mean(-1),
        "is_top1": lambda: logits_NV.argmax(-1) == targets_N,
    }
    return {name: make[name]() for name in reads}


def head_scores(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, reads: Collection[str], chunk_bytes: int = CHUNK_BYTES
) -> dict[str, Tensor]:
    """Return what the reference does, one chunk of `chunk_bytes` of logits at a time."""
    asked = frozenset(reads) | {"log_probs"}
    found = _HeadScores.apply(hidden_ND, head.weight_VD, head.bias_V, targets_N, head, asked, chunk_bytes)
    return {name: x_N for name, x_N in zip(FIELDS, found, strict=True) if name in reads}  # pyright: ignore


class _HeadScores(torch.autograd.Function):
    """See the head of the file."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, targets_N, head, reads, chunk_bytes):
        ctx.set_materialize_grads(False)
        num, with_slopes = len(targets_N), ctx.needs_input_grad[0]
        found = {
            name: torch.empty(num, dtype=torch.bool if name == "is_top1" else torch.float32, device=hidden_ND.device)
            for name in reads
        }
        du_ND = torch.empty_like(hidden_ND) if with_slopes else None
        step = max(8, chunk_bytes // (4 * len(weight_VD)))
        for i in range(0, num, step):
            rows = slice(i, i + step)
            parts, du_CD = _chunk(hidden_ND[rows], targets_N[rows], head, reads, with_slopes)
            for name, part_C in parts.items():
                found[name][rows] = part_C
            if du_ND is not None and du_CD is not None:
                du_ND[rows] = du_CD
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, du_ND)
        ctx.head, ctx.step = head, step
        ctx.mark_non_differentiable(*(x_N for name, x_N in found.items() if name not in FIELDS[:2]))
        return tuple(found.get(name) for name in FIELDS)

    @staticmethod
    def backward(ctx, *grads):
        d_logp_N, d_entropy_N = grads[:2]
        hidden_ND, weight_VD, bias_V, targets_N, du_ND = ctx.saved_tensors
        d_hidden = None
        if du_ND is not None and d_logp_N is not None:
            d_hidden = du_ND * d_logp_N[:, None].to(du_ND.dtype)
        needs_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if not needs_head and d_entropy_N is None:
            return d_hidden, None, None, None, None, None, None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_head else None
        d_bias = None if not needs_head or bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        if d_hidden is None:
            d_hidden = torch.zeros_like(hidden_ND)
        for i in range(0, len(targets_N), ctx.step):
            rows = slice(i, i + ctx.step)
            logp, entropy = (None if x is None else x[rows] for x in (d_logp_N, d_entropy_N))
            of_logp_CV, of_entropy_CV = _d_raw(hidden_ND[rows], targets_N[rows], ctx.head, logp, entropy)
            if of_entropy_CV is not None:
                d_hidden[rows] += of_entropy_CV.to(weight_VD.dtype) @ weight_VD
            d_CV = sum(part for part in (of_logp_CV, of_entropy_CV) if part is not None)
            if d_weight is not None and torch.is_tensor(d_CV):
                d_weight.add_((d_CV.to(hidden_ND.dtype).t() @ hidden_ND[rows]).float())
                if d_bias is not None:
                    d_bias += d_CV.sum(0)
        d_weight = None if d_weight is None else d_weight.to(weight_VD.dtype)
        return d_hidden, d_weight, d_bias, None, None, None, None


def _chunk(
    hidden_CD: Tensor,
    targets_C: Tensor,
    head: Head,
    reads: frozenset[str],
    with_slopes: bool,  # noqa: FBT001
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return what is read, [C] each, and the gradient of log-probabilities by hidden states [C, D]."""
    logits_CV = products.times_transposed(hidden_CD, head.weight_VD)
    if head.bias_V is not None:
        logits_CV += head.bias_V
    found = _beside(logits_CV, targets_C, head, reads)
    score = next(score for takes, score in _SCORES if takes(logits_CV))
    if "entropy" in reads and with_slopes:  # without slopes nothing is overwritten
        _, found["entropy"], _ = score(logits_CV, targets_C, head, (False, True))
    logp_C, entropy_C, u_CV = score(logits_CV, targets_C, head, (with_slopes, "entropy" in reads and not with_slopes))
    if "entropy" in reads and not with_slopes:
        found["entropy"] = entropy_C
    return found | {"log_probs": logp_C}, products.times(u_CV, head.weight_VD) if with_slopes else None


def _beside(logits_CV: Tensor, targets_C: Tensor, head: Head, reads: frozenset[str]) -> dict[str, Tensor]:
    """Return what has no gradient, from raw logits."""
    found: dict[str, Tensor] = {}
    if "is_top1" in reads:
        found["is_top1"] = logits_CV.argmax(-1) == targets_C
    if "mean_logits" in reads and head.softcap is None:
        found["mean_logits"] = logits_CV.mean(-1, dtype=torch.float32) * head.scale
    if "log_sum_sq_probs" in reads or ("mean_logits" in reads and head.softcap is not None):
        shaped_CV = head.shaped(logits_CV)
        found.setdefault("mean_logits", shaped_CV.mean(-1))
        once_C = torch.logsumexp(shaped_CV, -1)
        found["log_sum_sq_probs"] = torch.logsumexp(shaped_CV.mul_(2), -1) - 2 * once_C
    return {name: x_C for name, x_C in found.items() if name in reads}


_Scored = tuple[Tensor, Tensor, Tensor]
"""logp [C], entropy [C], and d logp / d raw logits [C, V]; the last two mean something where they were asked for."""


def _score_native(logits_CV: Tensor, targets_C: Tensor, head: Head, asked: tuple[bool, bool]) -> _Scored:
    logp_C, entropy_C, _ = native.module().score(logits_CV, targets_C, head.scale, head.softcap or 0.0, *asked)
    return logp_C, entropy_C, logits_CV


def _score_triton(logits_CV: Tensor, targets_C: Tensor, head: Head, asked: tuple[bool, bool]) -> _Scored:
    from luthier.kernels.triton.logprobs import score

    slopes, entropy = asked
    options = {"slopes": slopes, "with_entropy": entropy}
    logp_C, entropy_C, u_CV, _ = score(logits_CV, targets_C, head.scale, head.softcap, **options)
    return logp_C, entropy_C, u_CV


def _score_torch(logits_CV: Tensor, targets_C: Tensor, head: Head, asked: tuple[bool, bool]) -> _Scored:
    shaped_CV = head.shaped(logits_CV)
    logp_CV = torch.log_softmax(shaped_CV, -1)
    logp_C = logp_CV.gather(1, targets_C[:, None])[:, 0]
    p_CV = logp_CV.exp()
    entropy_C = -(p_CV * logp_CV).sum(-1) if asked[1] else logp_C
    if not asked[0]:
        return logp_C, entropy_C, logits_CV
    u_CV = p_CV.neg_().scatter_add_(1, targets_C[:, None], torch.ones_like(logp_C)[:, None])
    return logp_C, entropy_C, u_CV.mul_(head.slope(shaped_CV)).to(logits_CV.dtype)


_SCORES: tuple[tuple[Callable[[Tensor], bool], Callable[..., _Scored]], ...] = (
    (lambda x: native.takes(x) and native.unusable() is None, _score_native),
    (lambda x: x.device.type == "cuda" and gpu.unusable() is None, _score_triton),
    (lambda x: True, _score_torch),
)
"""Whether it takes a chunk of logits, and how it scores it; the first that does is taken."""


def _d_raw(
    hidden_CD: Tensor, targets_C: Tensor, head: Head, d_logp_C: Tensor | None, d_entropy_C: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by raw logits [C, V] that come through log-probability and through entropy."""
    logits_CV = head.logits(hidden_CD)
    slope = head.slope(logits_CV)
    logp_CV = torch.log_softmax(logits_CV, -1)
    p_CV = logp_CV.exp()
    of_logp_CV = of_entropy_CV = None
    if d_logp_C is not None:
        of_logp_CV = p_CV * -d_logp_C[:, None]
        of_logp_CV.scatter_add_(1, targets_C[:, None], d_logp_C[:, None].to(of_logp_CV.dtype)).mul_(slope)
    if d_entropy_C is not None:
        entropy_C1 = -(p_CV * logp_CV).sum(1, keepdim=True)
        of_entropy_CV = (p_CV * (logp_CV + entropy_C1)).neg_().mul_(d_entropy_C[:, None]).mul_(slope)
    return of_logp_CV, of_entropy_CV
