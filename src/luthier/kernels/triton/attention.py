"""Forest attention on a GPU, after FlashAttention-2 (arXiv:2307.08691): tiles of queries meet ranges of keys.

A tile is rows (first, last) of one span with the position of its first row; its ranges are consecutive tokens with the
position of their first. Forward and d_q walk the keys of a tile's ancestors; d_k and d_v walk the queries of a tile's
descendants, so that no two programs add to the same place.
Shapes: T tokens, H query heads, K key heads, D head size.
"""

# Launches give plain numbers where a kernel declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from luthier.kernels.gpu import power_of_two
from luthier.kernels.triton.dot import INTERPRETED, dot

if TYPE_CHECKING:
    from luthier.core.batch import Spans

_Tile = tuple[int, int, int, int]
"""Own rows (queries, or keys of the last kernel), rows of the other side, warps, stages."""
_TILES: dict[tuple[int, int], dict[str, _Tile]] = {
    (2, 64): {"forward": (64, 64, 4, 2), "q": (64, 32, 4, 2), "kv": (64, 32, 8, 2)},
    (2, 128): {"forward": (64, 64, 4, 2), "q": (64, 32, 8, 2), "kv": (64, 32, 8, 2)},
    (2, 256): {"forward": (64, 32, 8, 2), "q": (32, 32, 8, 2), "kv": (32, 32, 8, 2)},
    (2, 512): {"forward": (16, 16, 8, 1), "q": (16, 16, 8, 1), "kv": (16, 16, 8, 1)},
    (4, 64): {"forward": (32, 32, 4, 2), "q": (32, 32, 4, 2), "kv": (32, 16, 4, 2)},
    (4, 128): {"forward": (32, 32, 8, 2), "q": (32, 32, 8, 2), "kv": (16, 16, 8, 1)},
    (4, 256): {"forward": (32, 16, 8, 2), "q": (32, 16, 8, 2), "kv": (16, 16, 8, 1)},
}
"""Bytes of a number, head size at most -> tiles: the largest whose registers hardly spill, as the compiler reports."""
_INTERPRETED_TILE = 128, 128, 4, 1
"""The interpreter pays for each operation, whatever its size."""


@triton.jit
def _scores(left, right, q_position, k_position, visible, scale, softcap, window):
    """Return capped and masked scores, and the slope of the cap."""
    z = dot(left, right) * scale
    bent = 2 * tl.sigmoid(2 * z / tl.where(softcap > 0, softcap, 1.0)) - 1
    slope = tl.where(softcap > 0, 1 - bent * bent, 1.0)
    z = tl.where(softcap > 0, softcap * bent, z)
    age = q_position - k_position
    seen = visible & (age >= 0) & ((window <= 0) | (age < window))
    return tl.where(seen, z, -float("inf")), slope


@triton.jit
def attention_forward(
    q, k, v, out, lse, tiles, ranges, tokens, heads, size, q_h, q_t, k_h, k_t, v_h, v_t, group, scale, softcap, window,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, end, position = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1), tl.load(tiles + tile * 5 + 2)
    first_range, num_ranges = tl.load(tiles + tile * 5 + 3), tl.load(tiles + tile * 5 + 4)
    d = tl.arange(0, SIZE)
    row = (start + tl.arange(0, ROWS)).to(tl.int64)
    in_row, in_d = row < end, d < size
    q_position = (position + tl.arange(0, ROWS))[:, None]
    queries = tl.load(q + head * q_h + row[:, None] * q_t + d[None, :], mask=in_row[:, None] & in_d[None, :], other=0.0)
    k_base, v_base = k + head // group * k_h, v + head // group * v_h
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, SIZE], tl.float32)
    for r in range(first_range, first_range + num_ranges):
        low, high, low_position = tl.load(ranges + r * 3), tl.load(ranges + r * 3 + 1), tl.load(ranges + r * 3 + 2)
        for first in range(low, high, COLUMNS):
            column = (first + tl.arange(0, COLUMNS)).to(tl.int64)
            inside = column < high
            keys = tl.load(k_base + column[None, :] * k_t + d[:, None], mask=inside[None, :] & in_d[:, None], other=0.0)
            k_position = (low_position + column - low)[None, :]
            z, _ = _scores(queries, keys, q_position, k_position, inside[None, :], scale, softcap, window)
            new_peak = tl.maximum(peak, tl.max(z, 1))
            safe = tl.where(new_peak == -float("inf"), 0.0, new_peak)
            power = tl.exp(z - safe[:, None])
            shrink = tl.exp(peak - safe)
            total = total * shrink + tl.sum(power, 1)
            values = tl.load(
                v_base + column[:, None] * v_t + d[None, :], mask=inside[:, None] & in_d[None, :], other=0.0
            )
            mixed = mixed * shrink[:, None] + dot(power.to(values.dtype), values)
            peak = new_peak
    where = (row[:, None] * heads + head) * size + d[None, :]
    tl.store(out + where, mixed / total[:, None], mask=in_row[:, None] & in_d[None, :])
    tl.store(lse + head * tokens + row, peak + tl.log(total), mask=in_row)


@triton.jit
def attention_backward_q(
    q, k, v, grad, lse, delta, d_q, tiles, ranges, tokens, heads, size, q_h, q_t, k_h, k_t, v_h, v_t, group,
    scale, softcap, window, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, end, position = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1), tl.load(tiles + tile * 5 + 2)
    first_range, num_ranges = tl.load(tiles + tile * 5 + 3), tl.load(tiles + tile * 5 + 4)
    d = tl.arange(0, SIZE)
    row = (start + tl.arange(0, ROWS)).to(tl.int64)
    in_row, in_d = row < end, d < size
    both = in_row[:, None] & in_d[None, :]
    q_position = (position + tl.arange(0, ROWS))[:, None]
    queries = tl.load(q + head * q_h + row[:, None] * q_t + d[None, :], mask=both, other=0.0)
    slopes = tl.load(grad + (row[:, None] * heads + head) * size + d[None, :], mask=both, other=0.0)
    row_lse = tl.load(lse + head * tokens + row, mask=in_row, other=0.0)
    row_delta = tl.load(delta + head * tokens + row, mask=in_row, other=0.0)
    k_base, v_base = k + head // group * k_h, v + head // group * v_h
    sums = tl.zeros([ROWS, SIZE], tl.float32)
    for r in range(first_range, first_range + num_ranges):
        low, high, low_position = tl.load(ranges + r * 3), tl.load(ranges + r * 3 + 1), tl.load(ranges + r * 3 + 2)
        for first in range(low, high, COLUMNS):
            column = (first + tl.arange(0, COLUMNS)).to(tl.int64)
            inside = column < high
            by_column = inside[:, None] & in_d[None, :]
            keys = tl.load(k_base + column[:, None] * k_t + d[None, :], mask=by_column, other=0.0)
            values = tl.load(v_base + column[:, None] * v_t + d[None, :], mask=by_column, other=0.0)
            k_position = (low_position + column - low)[None, :]
            z, bend = _scores(queries, tl.trans(keys), q_position, k_position, inside[None, :], scale, softcap, window)
            power = tl.exp(z - row_lse[:, None])
            d_power = dot(slopes, tl.trans(values))
            d_z = power * (d_power - row_delta[:, None]) * bend * scale
            sums += dot(d_z.to(keys.dtype), keys)
    tl.store(d_q + (head * tokens + row[:, None]) * size + d[None, :], sums, mask=both)


@triton.jit
def attention_backward_kv(
    q, k, v, grad, lse, delta, d_k, d_v, tiles, ranges, tokens, heads, size, q_h, q_t, k_h, k_t, v_h, v_t, group,
    scale, softcap, window, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    tile, kv = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, end, position = tl.load(tiles + tile * 5), tl.load(tiles + tile * 5 + 1), tl.load(tiles + tile * 5 + 2)
    first_range, num_ranges = tl.load(tiles + tile * 5 + 3), tl.load(tiles + tile * 5 + 4)
    d = tl.arange(0, SIZE)
    column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    in_column, in_d = column < end, d < size
    both = in_column[:, None] & in_d[None, :]
    k_position = (position + tl.arange(0, COLUMNS))[None, :]
    keys = tl.load(k + kv * k_h + column[:, None] * k_t + d[None, :], mask=both, other=0.0)
    values = tl.load(v + kv * v_h + column[:, None] * v_t + d[None, :], mask=both, other=0.0)
    k_sums = tl.zeros([COLUMNS, SIZE], tl.float32)
    v_sums = tl.zeros([COLUMNS, SIZE], tl.float32)
    for member in range(0, group):
        head = kv * group + member
        for r in range(first_range, first_range + num_ranges):
            low, high, low_position = tl.load(ranges + r * 3), tl.load(ranges + r * 3 + 1), tl.load(ranges + r * 3 + 2)
            for first in range(low, high, ROWS):
                row = (first + tl.arange(0, ROWS)).to(tl.int64)
                inside = row < high
                by_row = inside[:, None] & in_d[None, :]
                queries = tl.load(q + head * q_h + row[:, None] * q_t + d[None, :], mask=by_row, other=0.0)
                slopes = tl.load(grad + (row[:, None] * heads + head) * size + d[None, :], mask=by_row, other=0.0)
                row_lse = tl.load(lse + head * tokens + row, mask=inside, other=0.0)
                row_delta = tl.load(delta + head * tokens + row, mask=inside, other=0.0)
                q_position = (low_position + row - low)[:, None]
                visible = inside[:, None] & in_column[None, :]
                z, bend = _scores(queries, tl.trans(keys), q_position, k_position, visible, scale, softcap, window)
                power = tl.exp(z - row_lse[:, None])
                v_sums += dot(tl.trans(power).to(slopes.dtype), slopes)
                d_power = dot(slopes, tl.trans(values))
                d_z = power * (d_power - row_delta[:, None]) * bend * scale
                k_sums += dot(tl.trans(d_z).to(queries.dtype), queries)
    where = (kv * tokens + column[:, None]) * size + d[None, :]
    tl.store(d_k + where, k_sums, mask=both)
    tl.store(d_v + where, v_sums, mask=both)


@lru_cache(maxsize=64)
def _plan(spans: Spans, device: torch.device, step: int, *, downwards: bool) -> tuple[Tensor, Tensor]:
    """Return tiles [n, 5] (start, end, position, first range, ranges) and ranges [m, 3] (start, end, position).

    A tile is `step` rows. Upwards the ranges of a tile are its ancestors and its own span up to its end; downwards
    its own span from its start on, and its descendants.
    """
    count = len(spans.start)
    sizes = [end - start for start, end in zip(spans.start, spans.end, strict=True)]
    above = [list(spans.ancestors(i)) for i in range(count)]
    position = [sum(sizes[a] for a in above[i]) for i in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for i in range(count):
        for a in above[i]:
            below[a].append(i)
    whole = [(spans.start[i], spans.end[i], position[i]) for i in range(count)]
    tiles: list[tuple[int, ...]] = []
    ranges: list[tuple[int, int, int]] = []
    for i, (start, end, first) in enumerate(whole):
        for low in range(start, end, step):
            high, here = min(low + step, end), first + low - start
            own = (low, end, here) if downwards else (start, high, first)
            seen = [own, *(whole[b] for b in below[i])] if downwards else [*(whole[a] for a in above[i]), own]
            tiles.append((low, high, here, len(ranges), len(seen)))
            ranges.extend(seen)
    shapes = (tiles, 5), (ranges, 3)
    return tuple(  # pyright: ignore[reportReturnType]
        torch.tensor(rows, dtype=torch.int32, device=device).view(-1, width) for rows, width in shapes
    )


class ForestAttention(torch.autograd.Function):
    """Keeps the inputs, the output and one number a query."""

    @staticmethod
    def forward(ctx, q_HTD, k_KTD, v_KTD, spans, scale, window, softcap):
        q_HTD, k_KTD, v_KTD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_HTD, k_KTD, v_KTD))
        heads, tokens, size = q_HTD.shape
        out_THD = torch.empty(tokens, heads, size, dtype=q_HTD.dtype, device=q_HTD.device)
        lse_HT = torch.empty(heads, tokens, dtype=torch.float32, device=q_HTD.device)
        facts = _facts(q_HTD, k_KTD, v_KTD, scale, window, softcap)
        blocks = _blocks("forward", size, q_HTD.itemsize)
        tiles, ranges = _plan(spans, q_HTD.device, blocks["ROWS"], downwards=False)
        if len(tiles):
            attention_forward[(len(tiles), heads)](
                q_HTD, k_KTD, v_KTD, out_THD, lse_HT, tiles, ranges, *facts, **blocks
            )
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, out_THD, lse_HT)
        ctx.options = spans, facts
        return out_THD

    @staticmethod
    def backward(ctx, *grads):
        q_HTD, k_KTD, v_KTD, out_THD, lse_HT = ctx.saved_tensors
        spans, facts = ctx.options
        grad_THD = grads[0].contiguous()
        delta_HT = (grad_THD.float() * out_THD.float()).sum(-1).t().contiguous()
        d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_HTD, k_KTD, v_KTD))
        inputs = q_HTD, k_KTD, v_KTD, grad_THD, lse_HT, delta_HT
        by_query, by_key = (_blocks(kind, q_HTD.shape[2], q_HTD.itemsize) for kind in ("q", "kv"))
        upwards = _plan(spans, q_HTD.device, by_query["ROWS"], downwards=False)
        downwards = _plan(spans, q_HTD.device, by_key["COLUMNS"], downwards=True)
        if len(upwards[0]):
            attention_backward_q[(len(upwards[0]), len(q_HTD))](*inputs, d_q, *upwards, *facts, **by_query)
            attention_backward_kv[(len(downwards[0]), len(k_KTD))](*inputs, d_k, d_v, *downwards, *facts, **by_key)
        return d_q, d_k, d_v, None, None, None, None


def _facts(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, scale: float, window: int | None, softcap: float | None
) -> tuple[float, ...]:
    heads, tokens, size = q_HTD.shape
    steps = [x.stride(axis) for x in (q_HTD, k_KTD, v_KTD) for axis in (0, 1)]
    return tokens, heads, size, *steps, heads // len(k_KTD), scale, softcap or 0.0, window or 0


def _blocks(kind: str, size: int, itemsize: int) -> dict[str, int]:
    """Return how a kernel (forward, q, kv) is launched for heads of `size` numbers of `itemsize` bytes."""
    padded = power_of_two(size, 16)
    tile = _INTERPRETED_TILE if INTERPRETED.value else _TILES[itemsize, max(64, padded)][kind]
    own, other, warps, stages = tile
    rows, columns = (other, own) if kind == "kv" else (own, other)
    return {"ROWS": rows, "COLUMNS": columns, "SIZE": padded, "num_warps": warps, "num_stages": stages}


def forest_attention(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See kernels/attention.py. Heads too large for the tiles go to plain torch."""
    if (q_HTD.itemsize, power_of_two(q_HTD.shape[2], 64)) not in _TILES:
        from luthier.kernels.attention import forest_attention as plain

        return plain(q_HTD, k_KTD, v_KTD, spans, scale, window, softcap)
    return ForestAttention.apply(q_HTD, k_KTD, v_KTD, spans, scale, window, softcap)  # pyright: ignore[reportReturnType]


_PLAN = dict.fromkeys(("tiles", "ranges"), "*i32")
_NUMBERS = {
    **dict.fromkeys(("tokens", "heads", "size", "q_h", "q_t", "k_h", "k_t", "v_h", "v_t", "group"), "i32"),
    "scale": "fp32", "softcap": "fp32", "window": "i32",
}  # fmt: skip


def _signatures(dtype: str, itemsize: int, size: int) -> list[tuple[object, dict[str, str], dict[str, int]]]:
    heads = dict.fromkeys(("q", "k", "v"), dtype)
    back = {**heads, "grad": dtype, "lse": "*fp32", "delta": "*fp32"}
    kinds = [
        (attention_forward, {**heads, "out": dtype, "lse": "*fp32"}, "forward"),
        (attention_backward_q, {**back, "d_q": dtype}, "q"),
        (attention_backward_kv, {**back, "d_k": dtype, "d_v": dtype}, "kv"),
    ]
    return [(kernel, {**own, **_PLAN, **_NUMBERS}, _blocks(kind, size, itemsize)) for kernel, own, kind in kinds]


# Heads of other sizes share the tiles of the next power of two.
SIGNATURES = [
    signature
    for itemsize, size in _TILES
    for signature in _signatures({2: "*bf16", 4: "*fp32"}[itemsize], itemsize, size)
]
