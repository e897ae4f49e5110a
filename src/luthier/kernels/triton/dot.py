"""The product of two tiles. Triton's interpreter multiplies bfloat16 as if it were whole numbers: it gets float32."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

SIGNATURES = ()


@triton.jit
def dot(left, right):
    if INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")
