"""4-bit weights on a GPU: rows made dense, and a product of few rows that looks levels up on the way.

Shapes: T rows, I inputs, O outputs, N blocks, B bytes.
"""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.kernels.triton.dot import dot

COUNT = 1024
TILES = {"ROWS": 16, "COLUMNS": 32, "DEPTH": 64}


@triton.jit
def _values(codes, scales, table, i, inside, SIZE: tl.constexpr):
    """Return the numbers at places `i`; the first of two lies in the high half of a byte."""
    byte = tl.load(codes + i // 2, mask=inside, other=0).to(tl.int32)
    code = tl.where(i % 2 == 0, byte >> 4, byte & 15)
    return tl.load(table + code) * tl.load(scales + i // SIZE, mask=inside, other=0.0)


@triton.jit
def nf4_rows(codes, scales, table, out, begin, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < count
    tl.store(out + k, _values(codes, scales, table, begin + k, inside, SIZE), mask=inside)


@triton.jit
def nf4_product(
    x, codes, scales, table, y, rows, columns, depth, SIZE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    in_m, in_n = m[:, None] < rows, n[None, :] < columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, depth, DEPTH):
        k = first + tl.arange(0, DEPTH)
        left = tl.load(x + m[:, None] * depth + k[None, :], mask=in_m & (k[None, :] < depth), other=0.0)
        inside = in_n & (k[:, None] < depth)
        right = _values(codes, scales, table, n[None, :] * depth + k[:, None], inside, SIZE)
        total += dot(left, right.to(left.dtype))
    tl.store(y + m[:, None] * columns + n[None, :], total, mask=in_m & in_n)


def rows(
    codes_B: Tensor, scale_N: Tensor, table: Tensor, size: int, where: tuple[int, int, int], dtype: torch.dtype
) -> Tensor:
    """Return dense rows; `where` is the first row, the row after the last, and the inputs."""
    first, last, inputs = where
    out = torch.empty(last - first, inputs, dtype=dtype, device=codes_B.device)
    if out.numel():
        grid = (triton.cdiv(out.numel(), COUNT),)
        nf4_rows[grid](codes_B, scale_N, table, out, first * inputs, out.numel(), SIZE=size, BLOCK=COUNT)
    return out


def product(x_TI: Tensor, codes_B: Tensor, scale_N: Tensor, table: Tensor, size: int, outputs: int) -> Tensor:
    """Return x W', [T, O]."""
    y_TO = torch.empty(len(x_TI), outputs, dtype=x_TI.dtype, device=x_TI.device)
    if len(x_TI):
        grid = triton.cdiv(len(x_TI), TILES["ROWS"]), triton.cdiv(outputs, TILES["COLUMNS"])
        parts = x_TI, codes_B, scale_N, table, y_TO
        nf4_product[grid](*parts, *x_TI.shape[:1], outputs, x_TI.shape[1], SIZE=size, **TILES)
    return y_TO


_CODES = {"codes": "*u8", "scales": "*fp32", "table": "*fp32"}
SIGNATURES = [
    signature
    for dtype in ("*bf16", "*fp32")
    for signature in (
        (nf4_rows, {**_CODES, "out": dtype, "begin": "i64", "count": "i64"}, {"SIZE": 64, "BLOCK": COUNT}),
        (nf4_product, {"x": dtype, **_CODES, "y": dtype, "rows": "i32", "columns": "i32", "depth": "i32"},
         {"SIZE": 64, **TILES}),
    )
]  # fmt: skip
