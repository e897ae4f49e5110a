"""Rotary position embedding (arXiv:2104.09864) of queries or keys: feature i turns with feature i + R / 2.

Shapes: H heads, T tokens, D head size, R features that turn (the first; R = D unless the rotation is partial).
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels import gpu, native
from luthier.kernels.op import Op, add


def rope_reference(x_HTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return the rotated heads [H, T, D], computed in float32 (float64 for float64), in the dtype of `x_HTD`."""
    wide = torch.promote_types(x_HTD.dtype, torch.float32)
    size = cos_TR.shape[-1]
    turning, rest = x_HTD[..., :size].to(wide), x_HTD[..., size:]
    low, high = turning.chunk(2, -1)
    turned = turning * cos_TR.to(wide) + torch.cat([-high, low], -1) * sin_TR.to(wide)
    return torch.cat([turned.to(x_HTD.dtype), rest], -1)


class _Rope(torch.autograd.Function):
    """Keeps nothing but the angles: the gradient of a rotation is its inverse."""

    @staticmethod
    def forward(ctx, x_HTD, cos_TR, sin_TR):
        ctx.save_for_backward(cos_TR, sin_TR)
        return native.module().rope(x_HTD, cos_TR, sin_TR, 1.0)

    @staticmethod
    def backward(ctx, *grads):
        cos_TR, sin_TR = ctx.saved_tensors
        return native.module().rope(grads[0].contiguous(), cos_TR, sin_TR, -1.0), None, None


def _sample(heads: int, tokens: int, size: int, turned: int):
    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, heads, size, generator=generator).to(dtype).transpose(0, 1)
        angles_TR = torch.rand(tokens, turned, generator=generator) * 6
        return x, angles_TR.cos(), angles_TR.sin()

    return make


ROPE = add(
    Op(
        "rope",
        rope_reference,
        samples=[_sample(1, 1, 8, 8), _sample(3, 7, 64, 64), _sample(2, 5, 22, 12), _sample(2, 0, 8, 8)],
        constant=(1, 2),
    )
)


@ROPE.backend("native", native.unusable, device="cpu")
def rope_native(x_HTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate in our own C++; any strides in, contiguous heads out."""
    if not native.takes(x_HTD) or x_HTD.stride(-1) != 1:
        return rope(x_HTD, cos_TR, sin_TR)
    return _Rope.apply(x_HTD, cos_TR, sin_TR)  # pyright: ignore[reportReturnType]


@ROPE.backend("triton", gpu.unusable, device="cuda")
def rope_triton(x_HTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate in Triton."""
    from luthier.kernels.triton.rope import rope as call

    return call(x_HTD, cos_TR, sin_TR)


@ROPE.backend("torch")
def rope(x_HTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate as the reference does."""
    return rope_reference(x_HTD, cos_TR, sin_TR)
