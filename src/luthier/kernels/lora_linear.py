"""A frozen linear layer with its low-rank addition in one function.

Shapes: T rows, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu, products
from luthier.kernels.op import Op, add


def lora_linear_reference(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return x W' + bias + scale * (d(x) A') B', in the dtype of `x` (LoRA, arXiv:2106.09685, equation 3).

    d(x) is x where `keep` (bool, like x) is true, divided by 1 - dropout, and 0 elsewhere; x itself without `keep`.
    """
    seen = x if keep is None else x * keep / (1 - dropout)
    low = F.linear(F.linear(seen, a_RI.to(x.dtype)), b_OR.to(x.dtype))
    return F.linear(x, weight_OI, bias_O) + low * scale


@dataclass(frozen=True, slots=True)
class _Products:
    """How the large products are computed."""

    times_transposed: Callable[[Tensor, Tensor], Tensor]
    times: Callable[[Tensor, Tensor], Tensor]


_TORCH = _Products(lambda x_TI, w_OI: x_TI @ w_OI.t(), torch.matmul)
_NATIVE = _Products(products.times_transposed, products.times)


class _LoraLinear(torch.autograd.Function):
    """Adds the low-rank product into the output in place; A and B may be float32 beside a bfloat16 weight."""

    @staticmethod
    def forward(ctx, x, weight_OI, bias_O, a_RI, b_OR, scale, keep, dropout, how):
        x_TI = x.flatten(0, -2)
        keep_TI = None if keep is None else keep.flatten(0, -2)
        low_TR = _seen(x_TI, keep_TI, dropout) @ a_RI.to(x.dtype).t()
        y_TO = how.times_transposed(x_TI, weight_OI)
        if bias_O is not None:
            y_TO += bias_O
        y_TO.addmm_(low_TR, b_OR.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR, keep_TI)
        ctx.scale, ctx.dropout, ctx.shape, ctx.how = scale, dropout, x.shape, how
        return y_TO.view(*x.shape[:-1], weight_OI.shape[0])

    @staticmethod
    def backward(ctx, *grads):
        x_TI, weight_OI, a_RI, b_OR, low_TR, keep_TI = ctx.saved_tensors
        dtype = x_TI.dtype
        d_TO = grads[0].flatten(0, -2)
        d_low_TR = d_TO @ b_OR.to(dtype)
        d_x = d_weight = d_bias = d_a = None
        if ctx.needs_input_grad[0]:
            d_x = ctx.how.times(d_TO, weight_OI)
            if keep_TI is None:
                d_x.addmm_(d_low_TR, a_RI.to(dtype), alpha=ctx.scale)
            else:
                d_x += _seen(d_low_TR @ a_RI.to(dtype), keep_TI, ctx.dropout) * ctx.scale
            d_x = d_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            d_weight = d_TO.t() @ x_TI
        if ctx.needs_input_grad[2]:
            d_bias = d_TO.sum(0)
        if ctx.needs_input_grad[3]:
            d_a = (d_low_TR.t() @ _seen(x_TI, keep_TI, ctx.dropout)).to(a_RI.dtype).mul_(ctx.scale)
        d_b = (d_TO.t() @ low_TR).to(b_OR.dtype).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return d_x, d_weight, d_bias, d_a, d_b, None, None, None, None


def _seen(x: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    """Return what the low-rank path sees; made again in the backward pass, so that only the mask is kept."""
    return x if keep is None else x * keep / (1 - dropout)


def _sample(num_rows: int, num_in: int, num_out: int, rank: int, *, with_bias: bool, dropout: float = 0.0):
    def make(dtype: torch.dtype) -> tuple[Tensor | float | None, ...]:
        generator = torch.Generator().manual_seed(num_in)
        x, weight, bias, a, b = (
            torch.randn(*shape, generator=generator).to(dtype) / shape[-1] ** 0.5
            for shape in ((num_rows, num_in), (num_out, num_in), (num_out,), (rank, num_in), (num_out, rank))
        )
        keep = torch.rand(num_rows, num_in, generator=generator) >= dropout if dropout else None
        return x, weight, bias if with_bias else None, a, b, 2.0, keep, dropout

    return make


LORA_LINEAR = add(
    Op(
        "lora_linear",
        lora_linear_reference,
        samples=[
            _sample(1, 8, 4, 2, with_bias=True),
            _sample(7, 33, 65, 5, with_bias=False),
            _sample(0, 4, 4, 1, with_bias=False),
            _sample(64, 96, 48, 16, with_bias=True),
            _sample(9, 24, 16, 4, with_bias=True, dropout=0.25),
            _sample(67, 130, 200, 8, with_bias=True),
            _sample(300, 66, 77, 8, with_bias=False),
        ],
    )
)


def _by(how: _Products) -> Callable[..., Tensor]:
    """Return the layer with three matrix products forward and five back, the large ones computed by `how`."""

    def call(
        x: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        keep: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        return _LoraLinear.apply(x, weight_OI, bias_O, a_RI, b_OR, scale, keep, dropout, how)  # pyright: ignore[reportReturnType]

    return call


lora_linear_native = LORA_LINEAR.backend("native", products.unusable, device="cpu")(_by(_NATIVE))
lora_linear = LORA_LINEAR.backend("torch")(_by(_TORCH))


@LORA_LINEAR.backend("triton", gpu.unusable, device="cuda")
def lora_linear_triton(
    x: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute the layer in Triton; stands behind the vendor's products until it is measured to be faster."""
    if keep is not None or not gpu.takes(x, weight_OI):
        return lora_linear(x, weight_OI, bias_O, a_RI, b_OR, scale, keep, dropout)
    from luthier.kernels.triton.product import lora_linear as call

    return call(x, weight_OI, bias_O, a_RI, b_OR, scale)
