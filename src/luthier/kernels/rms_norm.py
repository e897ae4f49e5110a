"""Root-mean-square norm (arXiv:1910.07467) with a hand-written backward.

Shapes: T rows, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.kernels import gpu, native
from luthier.kernels.op import Op, add


def rms_norm_reference(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * (offset + weight), computed in float32, in the dtype of `x`."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * (weight_D.float() + offset)).to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    """Keeps the input and one number a row; everything else is made again."""

    @staticmethod
    def forward(ctx, x, weight_D, eps, offset):
        x32 = x.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).pow_(2).div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        ctx.offset = offset
        return (x32 * scale).mul_(weight_D.float() + offset).to(x.dtype)

    @staticmethod
    def backward(ctx, *grads):
        x, weight_D, scale = ctx.saved_tensors
        grad32 = grads[0].float()
        normed = x.float() * scale
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad32 * normed).flatten(0, -2).sum(0).to(weight_D.dtype)
        d_normed = grad32 * (weight_D.float() + ctx.offset)
        mean = (d_normed * normed).mean(-1, keepdim=True)
        d_x = d_normed.sub_(normed.mul_(mean)).mul_(scale)
        return d_x.to(x.dtype), d_weight, None, None


def _sample(*shape: int):
    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, float, float]:
        generator = torch.Generator().manual_seed(len(shape))
        x = torch.randn(*shape, generator=generator).to(dtype)
        return x, torch.randn(shape[-1], generator=generator).to(dtype), 1e-6, float(len(shape) == 3)

    return make


RMS_NORM = add(
    Op("rms_norm", rms_norm_reference, samples=[_sample(1, 8), _sample(2, 5, 33), _sample(0, 4), _sample(64, 576)])
)


class _NativeRmsNorm(torch.autograd.Function):
    """One pass over the row forward, two back, in our own C++."""

    @staticmethod
    def forward(ctx, x, weight_D, eps, offset):
        x = x.contiguous()
        y, scale_T = native.module().rms_norm(x, weight_D, eps, offset)
        ctx.save_for_backward(x, weight_D, scale_T)
        ctx.offset = offset
        return y

    @staticmethod
    def backward(ctx, *grads):
        x, weight_D, scale_T = ctx.saved_tensors
        sums_D = torch.zeros(weight_D.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad = grads[0].to(x.dtype).contiguous()
        d_x = native.module().rms_norm_backward(grad, x, weight_D, scale_T, ctx.offset, sums_D)
        return d_x, None if sums_D is None else sums_D.to(weight_D.dtype), None, None


@RMS_NORM.backend("native", native.unusable, device="cpu")
def rms_norm_native(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute the norm in our own C++."""
    if not native.takes(x):
        return rms_norm(x, weight_D, eps, offset)
    return _NativeRmsNorm.apply(x, weight_D, eps, offset)  # pyright: ignore[reportReturnType]


@RMS_NORM.backend("triton", gpu.unusable, device="cuda")
def rms_norm_triton(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute the norm in Triton."""
    from luthier.kernels.triton.norm import rms_norm as call

    return call(x, weight_D, eps, offset)


@RMS_NORM.backend("torch")
def rms_norm(x: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute the norm as the reference does, with less memory."""
    return _RmsNorm.apply(x, weight_D, eps, offset)  # pyright: ignore[reportReturnType]
