"""Products of large matrices: our own C++ for float32 where that is faster than torch's, torch's elsewhere.

Shapes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

from torch import Tensor, float32

from luthier.kernels import native
from luthier.kernels.cpu import processor_flags

LEAST_SIDE = 64
"""Thinner matrices are not worth re-laying."""


def unusable() -> str | None:
    """Return why our own products are not used here, or None."""
    if "avx512f" not in processor_flags():
        return "torch's products are as fast without avx512f"
    return native.unusable()


def _takes(x: Tensor, w: Tensor) -> bool:
    is_plain = all(t.dtype == float32 and t.device.type == "cpu" and t.is_contiguous() for t in (x, w))
    return is_plain and min(*x.shape, *w.shape) >= LEAST_SIDE and unusable() is None


def times_transposed(x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """Return x w', [T, O]."""
    return native.module().matmul(x_TI, w_OI, True) if _takes(x_TI, w_OI) else x_TI @ w_OI.t()


def times(x_TO: Tensor, w_OI: Tensor) -> Tensor:
    """Return x w, [T, I]."""
    return native.module().matmul(x_TO, w_OI, False) if _takes(x_TO, w_OI) else x_TO @ w_OI
