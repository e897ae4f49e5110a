"""A frozen linear layer whose weight is kept in a narrow form: some rows of it are dense at a time, none are saved.

Shapes: T rows, I inputs, O outputs, P outputs of a panel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

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
    return _FrozenLinear.apply(x, bias_O, weight, forward)  # pyright: ignore[reportReturnType]


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
    def forward(ctx, x, bias_O, weight, forward):
        y_TO = forward(x.reshape(-1, x.shape[-1]).contiguous())
        ctx.weight, ctx.shape = weight, x.shape
        if bias_O is not None:
            y_TO += bias_O.to(y_TO.dtype)
        return y_TO.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx, *grads):
        d_TO = grads[0].reshape(-1, grads[0].shape[-1])
        d_x = _product_back(d_TO, ctx.weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        d_bias = d_TO.sum(0) if ctx.needs_input_grad[1] else None
        return d_x, d_bias, None, None
