"""A frozen linear layer whose weight is kept in a narrow form: some rows of it are dense at a time, none are saved.

A low-rank addition (LoRA, arXiv:2106.09685) goes into the output in place.
Shapes: T rows, I inputs, O outputs, P outputs of a panel, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PANEL_NUMBERS = 2**22
"""Numbers of a dense panel: 8 MB in bfloat16, few enough for a cache, enough for a product at full speed."""


class Weight(Protocol):
    """A weight in a narrow form."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        ...

    def rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Return dense rows [P, I]."""
        ...


def frozen_linear(x: Tensor, weight: Weight, bias_O: Tensor | None, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `forward` of the rows of `x`, and the bias; the backward pass gives the gradient of x W' + bias."""
    y_TO: Any = _FrozenLinear.apply(x.reshape(-1, x.shape[-1]), bias_O, weight, forward)
    return y_TO if x.dim() == 2 else y_TO.view(*x.shape[:-1], weight.shape[0])


def add_low_rank(
    y_TO: Tensor, x_TI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, keep_TI: Tensor | None, dropout: float
) -> Tensor:
    """Return y + scale * (d(x) A') B', written into `y`; A and B may be wider than `x`.

    d(x) is x where `keep` (bool) is true, divided by 1 - dropout, and 0 elsewhere; x itself without `keep`.
    """
    return _AddLowRank.apply(y_TO, x_TI, a_RI, b_OR, scale, keep_TI, dropout)  # pyright: ignore[reportReturnType]


def product(x_TI: Tensor, weight: Weight) -> Tensor:
    """Return x W', [T, O]."""
    y_TO = x_TI.new_empty(len(x_TI), weight.shape[0])
    for first, last in _panels(weight):
        y_TO[:, first:last] = x_TI @ weight.rows(first, last, x_TI.dtype).t()
    return y_TO


def _product_back(d_TO: Tensor, weight: Weight) -> Tensor:
    """Return d W, [T, I]; the sum over panels is at least float32."""
    wide = torch.promote_types(d_TO.dtype, torch.float32)
    d_TI = d_TO.new_zeros(len(d_TO), weight.shape[1], dtype=wide)
    for first, last in _panels(weight):
        d_TI += d_TO[:, first:last] @ weight.rows(first, last, d_TO.dtype)
    return d_TI.to(d_TO.dtype)


def _panels(weight: Weight) -> Iterator[tuple[int, int]]:
    outputs, inputs = weight.shape
    # A multiple of 32 outputs keeps panels on the borders of every packed form.
    step = max(32, PANEL_NUMBERS // max(1, inputs) // 32 * 32)
    for first in range(0, outputs, step):
        yield first, min(first + step, outputs)


class _FrozenLinear(torch.autograd.Function):
    """Saves nothing: the gradient of `x` needs the weight alone."""

    @staticmethod
    def forward(ctx, x_TI, bias_O, weight, forward):
        y_TO = forward(x_TI.contiguous())
        ctx.weight = weight
        if bias_O is not None:
            y_TO += bias_O.to(y_TO.dtype)
        # What is a view here could not be written into outside.
        return y_TO.new_empty(0).set_(y_TO) if y_TO._is_view() else y_TO

    @staticmethod
    def backward(ctx, *grads):
        d_x = _product_back(grads[0], ctx.weight) if ctx.needs_input_grad[0] else None
        d_bias = grads[0].sum(0) if ctx.needs_input_grad[1] else None
        return d_x, d_bias, None, None


class _AddLowRank(torch.autograd.Function):
    """Keeps `x` and the narrow product; of what fell out only the mask."""

    @staticmethod
    def forward(ctx, y_TO, x_TI, a_RI, b_OR, scale, keep_TI, dropout):
        low_TR = _seen(x_TI, keep_TI, dropout) @ a_RI.to(x_TI.dtype).t()
        ctx.mark_dirty(y_TO)
        ctx.save_for_backward(x_TI, a_RI, b_OR, low_TR, keep_TI)
        ctx.scale, ctx.dropout = scale, dropout
        return y_TO.addmm_(low_TR, b_OR.to(x_TI.dtype).t(), alpha=scale)

    @staticmethod
    def backward(ctx, *grads):
        x_TI, a_RI, b_OR, low_TR, keep_TI = ctx.saved_tensors
        d_TO, dtype = grads[0], x_TI.dtype
        d_low_TR = d_TO @ b_OR.to(dtype) * ctx.scale
        d_x = d_a = d_b = None
        if ctx.needs_input_grad[1]:
            d_x = _seen(d_low_TR @ a_RI.to(dtype), keep_TI, ctx.dropout)
        if ctx.needs_input_grad[2]:
            d_a = (d_low_TR.t() @ _seen(x_TI, keep_TI, ctx.dropout)).to(a_RI.dtype)
        if ctx.needs_input_grad[3]:
            d_b = (d_TO.t() @ low_TR).to(b_OR.dtype).mul_(ctx.scale)
        return d_TO, d_x, d_a, d_b, None, None, None


def _seen(x: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    return x if keep is None else x * keep / (1 - dropout)
