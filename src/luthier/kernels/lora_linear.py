"""A frozen linear layer with its low-rank addition in one function.

Shapes: T rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu
from luthier.kernels.op import Op, add


def lora_linear_reference(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
) -> Tensor:
    """Return x W' + bias + scale * (x A') B', in the dtype of `x`."""
    low = F.linear(F.linear(x, a_RI.to(x.dtype)), b_OR.to(x.dtype))
    return F.linear(x, weight_OI, bias_O) + low * scale


class _LoraLinear(torch.autograd.Function):
    """Adds the low-rank product into the output in place; A and B may be float32 beside a bfloat16 weight."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale):
        x_TI = x.flatten(0, -2)
        low_TR = x_TI @ a_RI.to(x.dtype).t()
        y_TO = F.linear(x_TI, weight_OI, bias_O)
        y_TO.addmm_(low_TR, b_OR.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_TO.view(*x.shape[:-1], weight_OI.shape[0])

    @staticmethod
    def backward(ctx, *grads):
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        dtype = x_TI.dtype
        d_TO = grads[0].flatten(0, -2)
        d_low_TR = d_TO @ b_OR.to(dtype)
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = (d_TO @ weight_OI).addmm_(d_low_TR, a_RI.to(dtype), alpha=ctx.scale).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            d_weight = d_TO.t() @ x_TI
        if ctx.needs_input_grad[2]:
            d_bias = d_TO.sum(0)
        d_a = (d_low_TR.t() @ x_TI).to(a_RI.dtype).mul_(ctx.scale) if ctx.needs_input_grad[3] else None
        d_b = (d_TO.t() @ low_TR).to(b_OR.dtype).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return d_x, d_weight, d_bias, d_a, d_b, None


def _sample(num_rows: int, num_in: int, num_out: int, rank: int, with_bias: bool):  # noqa: FBT001
    def make(dtype: torch.dtype) -> tuple[Tensor | float | None, ...]:
        generator = torch.Generator().manual_seed(num_in)
        x, weight, bias, a, b = (
            torch.randn(*shape, generator=generator).to(dtype) / shape[-1] ** 0.5
            for shape in ((num_rows, num_in), (num_out, num_in), (num_out,), (rank, num_in), (num_out, rank))
        )
        return x, weight, bias if with_bias else None, a, b, 2.0

    return make


LORA_LINEAR = add(
    Op(
        "lora_linear",
        lora_linear_reference,
        samples=[
            _sample(1, 8, 4, 2, True),
            _sample(7, 33, 65, 5, False),
            _sample(0, 4, 4, 1, False),
            _sample(64, 96, 48, 16, True),
        ],
    )
)


@LORA_LINEAR.backend("torch")
def lora_linear(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
) -> Tensor:
    """Compute the layer as the reference does, with three matrix products forward and five back."""
    return _LoraLinear.apply(x, weight_OI, bias_O, a_RI, b_OR, scale)  # pyright: ignore[reportReturnType]


@LORA_LINEAR.backend("triton", gpu.unusable, device="cuda")
def lora_linear_triton(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
) -> Tensor:
    """Compute the layer in Triton; stands behind the vendor's products until it is measured to be faster."""
    if not gpu.takes(x, weight_OI):
        return lora_linear(x, weight_OI, bias_O, a_RI, b_OR, scale)
    from luthier.kernels.triton.product import lora_linear as call

    return call(x, weight_OI, bias_O, a_RI, b_OR, scale)
