"""One chunk of logits to log-probability, entropy and their slopes on a GPU: two passes over a row, nothing else kept.

Shapes: C rows, V vocabulary.
"""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _shaped(raw, scale, softcap):
    """Return scaled and capped logits, and their slope; softcap 0 caps nothing."""
    z = raw.to(tl.float32) * scale
    bent = 2 * tl.sigmoid(2 * z / tl.where(softcap > 0, softcap, 1.0)) - 1
    return tl.where(softcap > 0, softcap * bent, z), tl.where(softcap > 0, scale * (1 - bent * bent), scale)


@triton.jit
def score_rows(
    logits, targets, logp, entropy, d_logp, d_entropy, size, scale, softcap,
    SLOPES: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = row * size
    peak = -float("inf")
    total = 0.0
    weighted = 0.0
    for first in range(0, size, BLOCK):
        i = first + tl.arange(0, BLOCK)
        z, _ = _shaped(tl.load(logits + start + i, mask=i < size, other=0.0), scale, softcap)
        z = tl.where(i < size, z, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(z, 0))
        power = tl.exp(z - new_peak)
        shrink = tl.exp(peak - new_peak)
        total = total * shrink + tl.sum(power, 0)
        weighted = weighted * shrink + tl.sum(tl.where(i < size, power * z, 0.0), 0)
        peak = new_peak
    lse = peak + tl.log(total)
    target = tl.load(targets + row)
    at_target, _ = _shaped(tl.load(logits + start + target), scale, softcap)
    tl.store(logp + row, at_target - lse)
    spread = lse - weighted / total
    if ENTROPY:
        tl.store(entropy + row, spread)
    if SLOPES:
        for first in range(0, size, BLOCK):
            i = first + tl.arange(0, BLOCK)
            z, slope = _shaped(tl.load(logits + start + i, mask=i < size, other=0.0), scale, softcap)
            p = tl.exp(z - lse)
            tl.store(d_logp + start + i, (tl.where(i == target, 1.0, 0.0) - p) * slope, mask=i < size)
            if ENTROPY:
                tl.store(d_entropy + start + i, -p * (z - lse + spread) * slope, mask=i < size)


def score(
    logits_CV: Tensor, targets_C: Tensor, scale: float, softcap: float | None, *, slopes: bool, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logp [C], entropy [C] and their slopes by raw logits [C, V]; the first slope overwrites the logits."""
    rows, size = logits_CV.shape
    logp, entropy = torch.empty(2, rows, dtype=torch.float32, device=logits_CV.device)
    d_entropy = torch.empty_like(logits_CV) if slopes and with_entropy else logits_CV
    if rows:
        # The slope of logp goes over the logits only when no other pass reads them: each block is read before.
        score_rows[(rows,)](
            logits_CV, targets_C, logp, entropy, logits_CV, d_entropy, size, scale, softcap or 0.0,
            SLOPES=slopes, ENTROPY=with_entropy, BLOCK=4096,
        )  # fmt: skip
    return logp, entropy, logits_CV, d_entropy


SIGNATURES = [
    (score_rows, {"logits": dtype, "targets": "*i64", "logp": "*fp32", "entropy": "*fp32", "d_logp": dtype,
                  "d_entropy": dtype, "size": "i32", "scale": "fp32", "softcap": "fp32"},
     {"SLOPES": True, "ENTROPY": True, "BLOCK": 4096})
    for dtype in ("*bf16", "*fp32")
]  # fmt: skip
