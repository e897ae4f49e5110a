"""Rotary embedding on a GPU: a program for each head of each token."""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.kernels.gpu import power_of_two


@triton.jit
def rotate(
    x, cos, sin, y, tokens, size, turned, head_step, token_step, direction, HALF: tl.constexpr, REST: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    head = row // tokens
    token = row % tokens
    half = turned // 2
    i = tl.arange(0, HALF)
    inside = i < half
    source = x + head * head_step + token * token_step
    to = y + row * size
    low = tl.load(source + i, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + half + i, mask=inside, other=0.0).to(tl.float32)
    low_cos = tl.load(cos + token * turned + i, mask=inside, other=0.0)
    low_sin = tl.load(sin + token * turned + i, mask=inside, other=0.0)
    high_cos = tl.load(cos + token * turned + half + i, mask=inside, other=0.0)
    high_sin = tl.load(sin + token * turned + half + i, mask=inside, other=0.0)
    # Forward: (low, high) turns by +angle. Back: by the transpose, whose sines change places.
    if direction > 0:
        tl.store(to + i, low * low_cos - high * low_sin, mask=inside)
        tl.store(to + half + i, high * high_cos + low * high_sin, mask=inside)
    else:
        tl.store(to + i, low * low_cos + high * high_sin, mask=inside)
        tl.store(to + half + i, high * high_cos - low * low_sin, mask=inside)
    j = turned + tl.arange(0, REST)
    tl.store(to + j, tl.load(source + j, mask=j < size, other=0.0), mask=j < size)


def _launch(x_HTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, direction: int) -> Tensor:
    heads, tokens, size = x_HTD.shape
    turned = cos_TR.shape[1]
    if x_HTD.stride(2) != 1:
        x_HTD = x_HTD.contiguous()
    y = torch.empty(heads, tokens, size, dtype=x_HTD.dtype, device=x_HTD.device)
    if heads * tokens:
        rotate[(heads * tokens,)](
            x_HTD, cos_TR.float().contiguous(), sin_TR.float().contiguous(), y, tokens, size, turned,
            x_HTD.stride(0), x_HTD.stride(1), direction,
            HALF=power_of_two(turned // 2), REST=power_of_two(size - turned),
        )  # fmt: skip
    return y


class Rope(torch.autograd.Function):
    """Keeps nothing but the angles."""

    @staticmethod
    def forward(ctx, x_HTD, cos_TR, sin_TR):
        ctx.save_for_backward(cos_TR, sin_TR)
        return _launch(x_HTD, cos_TR, sin_TR, 1)

    @staticmethod
    def backward(ctx, *grads):
        return _launch(grads[0], *ctx.saved_tensors, -1), None, None


def rope(x_HTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """See kernels/rope.py."""
    return Rope.apply(x_HTD, cos_TR, sin_TR)  # pyright: ignore[reportReturnType]


_SIZES = dict.fromkeys(("tokens", "size", "turned", "head_step", "token_step", "direction"), "i32")
SIGNATURES = [
    (rotate, {"x": dtype, "cos": "*fp32", "sin": "*fp32", "y": dtype, **_SIZES}, {"HALF": 32, "REST": 1})
    for dtype in ("*bf16", "*fp32")
]
