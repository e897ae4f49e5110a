"""Logits to tokens: penalties, temperature, top-k, top-p, min-p, and a draw per row from its own generator.

Shapes: N rows, V vocabulary, K kept candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.kernels import native

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from luthier.core.types import Sampling

CANDIDATES = 1024
"""top-p looks at this many of the most probable tokens first; nearly always they hold the asked share."""


def most_probable(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return token and log-probability of each row's largest logit; the first of equals."""
    if native.takes(logits_NV) and native.unusable() is None:
        return native.module().most_probable(logits_NV)
    peak_N, tokens_N = logits_NV.max(-1)
    return tokens_N, peak_N - torch.logsumexp(logits_NV, -1)


def choose(
    logits_NV: Tensor, how: Sampling, draws: Sequence[np.random.Generator], shaped_NV: Tensor | None = None
) -> tuple[list[int], list[float], list[float] | None]:
    """Return a token for each row, and its log-probability, in nats, under the model and under what drew it.

    The second is that under softmax(logits / temperature), whatever was left out of the draw; None where the
    temperature is 0 or 1. `shaped_NV`: what is drawn from where that is not the model's logits. Where the logits
    are NaN, so is the log-probability.
    """
    if shaped_NV is None and how.temperature == 0:
        tokens_N, logp_N = most_probable(logits_NV)
        return tokens_N.tolist(), logp_N.tolist(), None
    shaped_NV = logits_NV if shaped_NV is None else shaped_NV
    tokens_N = shaped_NV.argmax(-1) if how.temperature == 0 else _draw(shaped_NV / how.temperature, how, draws)
    drawn_N = logp_of(logits_NV / how.temperature, tokens_N).tolist() if is_tempered(how) else None
    return tokens_N.tolist(), logp_of(logits_NV, tokens_N).tolist(), drawn_N


def not_finite() -> ModelError:
    """Return what to raise for logits that are no numbers."""
    return ModelError(
        "the model's logits are not finite: its weights are broken or overflow in this number format; "
        "try dtype: float32, or an earlier checkpoint",
        code="model_nan",
    )


def is_tempered(how: Sampling) -> bool:
    """Tell whether answers are drawn from another distribution than the model's own."""
    return how.temperature not in (0.0, 1.0)


def logp_of(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Return the log-probability of one token of each row."""
    return logits_NV.gather(1, tokens_N[:, None])[:, 0] - torch.logsumexp(logits_NV, -1)


def _draw(logits_NV: Tensor, how: Sampling, draws: Sequence[np.random.Generator]) -> Tensor:
    """Draw from the shaped distribution, in the order top-k, top-p (arXiv:1904.09751), min-p (arXiv:2407.01082)."""
    index_NK = None
    if how.top_k and how.top_k < logits_NV.shape[1]:
        logits_NV, index_NK = logits_NV.topk(how.top_k)
    probs_NK = torch.softmax(logits_NV, -1)
    if how.top_p < 1:
        probs_NK, index_NK = _nucleus(probs_NK, index_NK, how.top_p)
    if how.min_p > 0:
        probs_NK = probs_NK.masked_fill(probs_NK < how.min_p * probs_NK.amax(-1, keepdim=True), 0.0)
    sums_NK = probs_NK.double().cumsum(-1)
    points = torch.tensor([g.random() for g in draws], dtype=torch.float64, device=probs_NK.device)
    # The first place whose sum is over the point has a probability above zero.
    places_N1 = torch.searchsorted(sums_NK, (points * sums_NK[:, -1])[:, None], right=True)
    places_N1 = places_N1.clamp(max=sums_NK.shape[1] - 1)
    return (places_N1 if index_NK is None else index_NK.gather(1, places_N1))[:, 0]


def _nucleus(probs_NK: Tensor, index_NK: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    """Keep the most probable tokens up to the one that reaches `share`, sorted."""
    count = min(CANDIDATES, probs_NK.shape[1])
    top_NC, place_NC = probs_NK.topk(count)
    if bool((top_NC.sum(-1) < share).any()):
        top_NC, place_NC = probs_NK.sort(-1, descending=True)
    before_NC = top_NC.cumsum(-1) - top_NC
    # Sums of softmaxed numbers may miss 1 by rounding: the first token always stays.
    kept_NC = top_NC.masked_fill(before_NC >= share, 0.0)
    return kept_NC, place_NC if index_NK is None else index_NK.gather(1, place_NC)
