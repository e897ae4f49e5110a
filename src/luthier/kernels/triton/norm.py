"""RMSNorm and LayerNorm on a GPU: a program a row forward, some rows a program back."""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.kernels.gpu import power_of_two

ROWS_PER_PROGRAM = 16


@triton.jit
def norm_forward(
    x, weight, bias, y, mean, rstd, size, eps, offset,
    CENTERED: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < size
    value = tl.load(x + row * size + i, mask=inside, other=0.0).to(tl.float32)
    if CENTERED:
        middle = tl.sum(value, 0) / size
        tl.store(mean + row, middle)
        value = tl.where(inside, value - middle, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / size + eps)
    tl.store(rstd + row, factor)
    out = value * factor * (tl.load(weight + i, mask=inside, other=0.0).to(tl.float32) + offset)
    if BIASED:
        out += tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * size + i, out, mask=inside)


@triton.jit
def norm_backward(
    grad, x, weight, mean, rstd, d_x, d_weight, d_bias, rows, size, offset,
    CENTERED: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < size
    gain = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32) + offset
    weight_sum = tl.zeros([BLOCK], tl.float32)
    bias_sum = tl.zeros([BLOCK], tl.float32)
    first = program.to(tl.int64) * ROWS
    for k in range(0, tl.minimum(ROWS, rows - program * ROWS)):
        row = first + k
        start = row * size
        value = tl.load(x + start + i, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(grad + start + i, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(rstd + row)
        if CENTERED:
            value = tl.where(inside, value - tl.load(mean + row), 0.0)
        normed = value * factor
        slope = d * gain
        out = slope - normed * (tl.sum(slope * normed, 0) / size)
        if CENTERED:
            out -= tl.sum(slope, 0) / size
        tl.store(d_x + start + i, out * factor, mask=inside)
        if SUMS:
            weight_sum += d * normed
            bias_sum += d
    if SUMS:
        tl.store(d_weight + program * size + i, weight_sum, mask=inside)
        tl.store(d_bias + program * size + i, bias_sum, mask=inside)


class Norm(torch.autograd.Function):
    """Both norms; `bias_D` None and `centered` False make it RMSNorm."""

    @staticmethod
    def forward(ctx, x, weight_D, bias_D, eps, offset, centered):
        x = x.contiguous()
        size = x.shape[-1]
        rows = x.numel() // max(1, size)
        y, mean, rstd = torch.empty_like(x), *torch.empty(2, rows, dtype=torch.float32, device=x.device)
        block = power_of_two(size)
        if rows:
            norm_forward[(rows,)](
                x, weight_D, weight_D if bias_D is None else bias_D, y, mean, rstd, size, eps, offset,
                CENTERED=centered, BIASED=bias_D is not None, BLOCK=block,
            )  # fmt: skip
        ctx.save_for_backward(x, weight_D, mean, rstd)
        ctx.options = offset, centered, rows, block
        return y

    @staticmethod
    def backward(ctx, *grads):
        x, weight_D, mean, rstd = ctx.saved_tensors
        offset, centered, rows, block = ctx.options
        sums = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        programs = triton.cdiv(rows, ROWS_PER_PROGRAM)
        d_x = torch.empty_like(x)
        partial = torch.empty(2, programs if sums else 0, x.shape[-1], dtype=torch.float32, device=x.device)
        if rows:
            norm_backward[(programs,)](
                grads[0].contiguous(), x, weight_D, mean, rstd, d_x, partial[0], partial[1], rows, x.shape[-1], offset,
                CENTERED=centered, SUMS=sums, ROWS=ROWS_PER_PROGRAM, BLOCK=block,
            )  # fmt: skip
        d_weight, d_bias = (
            partial[k].sum(0).to(weight_D.dtype) if ctx.needs_input_grad[k + 1] else None for k in range(2)
        )
        return d_x, d_weight, d_bias, None, None, None


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """See kernels/rms_norm.py."""
    return Norm.apply(x, weight_D, None, eps, offset, False)  # pyright: ignore[reportReturnType]


def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """See kernels/layer_norm.py."""
    return Norm.apply(x, weight_D, bias_D, eps, 0.0, True)  # pyright: ignore[reportReturnType]


_STATISTICS = {"mean": "*fp32", "rstd": "*fp32"}
SIGNATURES = [
    signature
    for dtype in ("*bf16", "*fp32")
    for signature in (
        (norm_forward, {**dict.fromkeys(("x", "weight", "bias", "y"), dtype), **_STATISTICS, "size": "i32",
                        "eps": "fp32", "offset": "fp32"}, {"CENTERED": True, "BIASED": True, "BLOCK": 4096}),
        (norm_backward, {**dict.fromkeys(("grad", "x", "weight", "d_x"), dtype), **_STATISTICS, "d_weight": "*fp32",
                         "d_bias": "*fp32", "rows": "i32", "size": "i32", "offset": "fp32"},
         {"CENTERED": True, "SUMS": True, "ROWS": ROWS_PER_PROGRAM, "BLOCK": 4096}),
    )
]  # fmt: skip
