"""Matrix products on a GPU: with a low-rank addition, and of 8-bit numbers in groups.

Shapes: M rows, K inputs, N outputs, R rank, G groups.
"""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.kernels.gpu import power_of_two
from luthier.kernels.triton.dot import dot

TILES = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}


@triton.jit
def low_rank_product(
    x, w, bias, low, b, y, rows, columns, depth, w_k, w_n, b_r, b_n, scale,
    BIASED: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    in_m, in_n = m[:, None] < rows, n[None, :] < columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, depth, DEPTH):
        k = first + tl.arange(0, DEPTH)
        left = tl.load(x + m[:, None] * depth + k[None, :], mask=in_m & (k[None, :] < depth), other=0.0)
        right = tl.load(w + k[:, None] * w_k + n[None, :] * w_n, mask=in_n & (k[:, None] < depth), other=0.0)
        total += dot(left, right)
    r = tl.arange(0, RANK)
    left = tl.load(low + m[:, None] * R + r[None, :], mask=in_m & (r[None, :] < R), other=0.0)
    right = tl.load(b + r[:, None] * b_r + n[None, :] * b_n, mask=in_n & (r[:, None] < R), other=0.0)
    total += scale * dot(left, right)
    if BIASED:
        total += tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    tl.store(y + m[:, None] * columns + n[None, :], total, mask=in_m & in_n)


def _product(x_MK: Tensor, w_KN: Tensor, bias: Tensor | None, low_MR: Tensor, b_RN: Tensor, scale: float) -> Tensor:
    """Return x w + bias + scale * low b."""
    (rows, depth), columns = x_MK.shape, w_KN.shape[1]
    y = torch.empty(rows, columns, dtype=x_MK.dtype, device=x_MK.device)
    if rows:
        grid = triton.cdiv(rows, TILES["ROWS"]), triton.cdiv(columns, TILES["COLUMNS"])
        low_rank_product[grid](
            x_MK.contiguous(), w_KN, y if bias is None else bias, low_MR.contiguous(), b_RN, y, rows, columns, depth,
            *w_KN.stride(), *b_RN.stride(), scale,
            BIASED=bias is not None, RANK=power_of_two(low_MR.shape[1], 16), R=low_MR.shape[1], **TILES,
        )  # fmt: skip
    return y


class LoraLinear(torch.autograd.Function):
    """The low-rank addition happens in the registers that hold the product."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale):
        x_TI = x.flatten(0, -2)
        low_TR = x_TI @ a_RI.to(x.dtype).t()
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR)
        ctx.scale, ctx.shape = scale, x.shape
        y_TO = _product(x_TI, weight_OI.t(), bias_O, low_TR, b_OR.to(x.dtype).t(), scale)
        return y_TO.view(*x.shape[:-1], weight_OI.shape[0])

    @staticmethod
    def backward(ctx, *grads):
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        d_TO, dtype = grads[0].flatten(0, -2), x_TI.dtype
        d_low_TR = d_TO @ b_OR.to(dtype)
        needs = ctx.needs_input_grad
        d_x = _product(d_TO, weight_OI, None, d_low_TR, a_RI.to(dtype), ctx.scale).view(ctx.shape) if needs[0] else None
        d_weight = d_TO.t() @ x_TI if needs[1] else None
        d_bias = d_TO.sum(0) if needs[2] else None
        d_a = (d_low_TR.t() @ x_TI).to(a_RI.dtype).mul_(ctx.scale) if needs[3] else None
        d_b = (d_TO.t() @ low_TR).to(b_OR.dtype).mul_(ctx.scale) if needs[4] else None
        return d_x, d_weight, d_bias, d_a, d_b, None


def lora_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
) -> Tensor:
    """See kernels/lora_linear.py."""
    return LoraLinear.apply(x, weight_OI, bias_O, a_RI, b_OR, scale)  # pyright: ignore[reportReturnType]


@triton.jit
def int8_product(
    x, x_scale, w, w_scale, y, rows, columns, groups,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    in_m, in_n = m < rows, n < columns
    k = tl.arange(0, GROUP)
    width = groups * GROUP
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for g in range(groups):
        left = tl.load(x + m[:, None] * width + g * GROUP + k[None, :], mask=in_m[:, None], other=0)
        right = tl.load(w + n[None, :] * width + g * GROUP + k[:, None], mask=in_n[None, :], other=0)
        left_scale = tl.load(x_scale + m * groups + g, mask=in_m, other=0.0)
        right_scale = tl.load(w_scale + n * groups + g, mask=in_n, other=0.0)
        total += tl.dot(left, right).to(tl.float32) * left_scale[:, None] * right_scale[None, :]
    tl.store(y + m[:, None] * columns + n[None, :], total, mask=in_m[:, None] & in_n[None, :])


def int8_matmul(x_MK: Tensor, x_scale_MG: Tensor, w_NK: Tensor, w_scale_NG: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the product of two matrices in groups of 8-bit numbers, [M, N]; K is a whole number of groups."""
    rows, columns, groups = len(x_MK), len(w_NK), x_scale_MG.shape[1]
    y = torch.empty(rows, columns, dtype=dtype, device=x_MK.device)
    if rows:
        grid = triton.cdiv(rows, 32), triton.cdiv(columns, 64)
        int8_product[grid](
            x_MK, x_scale_MG, w_NK, w_scale_NG, y, rows, columns, groups,
            GROUP=x_MK.shape[1] // groups, ROWS=32, COLUMNS=64,
        )  # fmt: skip
    return y


_SIZES = dict.fromkeys(("rows", "columns", "depth", "w_k", "w_n", "b_r", "b_n"), "i32")
_GROUPS = {"x": "*i8", "x_scale": "*fp32", "w": "*i8", "w_scale": "*fp32"}
# Triton makes a step of one a constant: first the weight of a forward pass, then that of a backward pass.
SIGNATURES = [
    *((low_rank_product, {**dict.fromkeys(("x", "w", "bias", "low", "b", "y"), dtype), **_SIZES, "scale": "fp32"},
       {"BIASED": True, "RANK": 16, "R": 16, **TILES, **ones})
      for dtype in ("*bf16", "*fp32") for ones in ({"w_k": 1, "b_r": 1}, {"w_n": 1, "b_n": 1})),
    *((int8_product, {**_GROUPS, "y": dtype, "rows": "i32", "columns": "i32", "groups": "i32"},
       {"GROUP": 64, "ROWS": 32, "COLUMNS": 64})
      for dtype in ("*bf16", "*fp32")),
]  # fmt: skip
