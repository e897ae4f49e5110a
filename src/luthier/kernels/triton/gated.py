"""SwiGLU and GeGLU gates on a GPU."""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SIZE = 1024


@triton.jit
def _value_and_slope(x, IS_SILU: tl.constexpr):
    if IS_SILU:
        bent = tl.sigmoid(x)
        value = x * bent
        slope = bent * (1 + x * (1 - bent))
    else:
        inner = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
        bent = 2 * tl.sigmoid(2 * inner) - 1
        value = 0.5 * x * (1 + bent)
        slope = 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x)
    return value, slope


@triton.jit
def gated_forward(gate, up, y, count, IS_SILU: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    value, _ = _value_and_slope(tl.load(gate + i, mask=inside, other=0.0).to(tl.float32), IS_SILU)
    tl.store(y + i, value * tl.load(up + i, mask=inside, other=0.0).to(tl.float32), mask=inside)


@triton.jit
def gated_backward(grad, gate, up, d_gate, d_up, count, IS_SILU: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    value, slope = _value_and_slope(tl.load(gate + i, mask=inside, other=0.0).to(tl.float32), IS_SILU)
    d = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_up + i, d * value, mask=inside)
    tl.store(d_gate + i, d * tl.load(up + i, mask=inside, other=0.0).to(tl.float32) * slope, mask=inside)


class Gated(torch.autograd.Function):
    """Keeps gate and up."""

    @staticmethod
    def forward(ctx, gate_TF, up_TF, is_silu):
        gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.is_silu = is_silu
        y, count = torch.empty_like(gate_TF), gate_TF.numel()
        if count:
            grid = (triton.cdiv(count, BLOCK_SIZE),)
            gated_forward[grid](gate_TF, up_TF, y, count, IS_SILU=is_silu, BLOCK=BLOCK_SIZE)
        return y

    @staticmethod
    def backward(ctx, *grads):
        gate_TF, up_TF = ctx.saved_tensors
        d_gate, d_up, count = torch.empty_like(gate_TF), torch.empty_like(up_TF), gate_TF.numel()
        if count:
            grid = (triton.cdiv(count, BLOCK_SIZE),)
            grad = grads[0].contiguous()
            gated_backward[grid](grad, gate_TF, up_TF, d_gate, d_up, count, IS_SILU=ctx.is_silu, BLOCK=BLOCK_SIZE)
        return d_gate, d_up, None


def gated(gate_TF: Tensor, up_TF: Tensor, activation: str = "silu") -> Tensor:
    """See kernels/gated.py."""
    return Gated.apply(gate_TF, up_TF, activation == "silu")  # pyright: ignore[reportReturnType]


def _signatures(dtype: str, options: dict[str, object]) -> list[tuple[object, dict[str, str], dict[str, object]]]:
    forward, backward = ("gate", "up", "y"), ("grad", "gate", "up", "d_gate", "d_up")
    return [
        (kernel, {**dict.fromkeys(names, dtype), "count": "i32"}, options)
        for kernel, names in ((gated_forward, forward), (gated_backward, backward))
    ]


SIGNATURES = [
    signature
    for dtype in ("*bf16", "*fp32")
    for is_silu in (True, False)
    for signature in _signatures(dtype, {"IS_SILU": is_silu, "BLOCK": BLOCK_SIZE})
]
