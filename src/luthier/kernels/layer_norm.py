"""Layer norm (arXiv:1607.06450). torch's own operation is fused on the processor; Triton's twin serves GPUs.

Shapes: T rows, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu
from luthier.kernels.op import Op, add


def layer_norm_reference(x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias, computed in float32, in the dtype of `x`."""
    centered = x.float() - x.float().mean(-1, keepdim=True)
    normed = centered * torch.rsqrt(centered.pow(2).mean(-1, keepdim=True) + eps) * weight_D.float()
    return (normed if bias_D is None else normed + bias_D.float()).to(x.dtype)


def _sample(with_bias: bool, *shape: int):  # noqa: FBT001
    def make(dtype: torch.dtype) -> tuple[Tensor | float | None, ...]:
        generator = torch.Generator().manual_seed(len(shape))
        x = (torch.randn(*shape, generator=generator) * 2 + 1).to(dtype)
        weight, bias = torch.randn(2, shape[-1], generator=generator).to(dtype).unbind(0)
        return x, weight, bias if with_bias else None, 1e-5

    return make


LAYER_NORM = add(
    Op(
        "layer_norm",
        layer_norm_reference,
        samples=[_sample(True, 1, 8), _sample(False, 2, 5, 33), _sample(True, 0, 4), _sample(True, 64, 576)],
    )
)


@LAYER_NORM.backend("triton", gpu.unusable, device="cuda")
def layer_norm_triton(x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """Compute the norm in Triton."""
    from luthier.kernels.triton.norm import layer_norm as call

    return call(x, weight_D, bias_D, eps)


@LAYER_NORM.backend("torch")
def layer_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """Compute the norm with torch's fused operation."""
    return F.layer_norm(x, x.shape[-1:], weight_D, bias_D, eps)
