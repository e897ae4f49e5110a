"""Attention over a packed forest: each span sees its ancestors whole and itself causally.

Shapes: T tokens, H query heads, K key heads, D head size, L queries of a tile, M keys of a tile.
Ancestors lie in front of a span on its path, so a key's index on the path is its position, and the causal
mask and a sliding window depend on indices alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.batch import Spans
from luthier.kernels.op import Op, add

if TYPE_CHECKING:
    from collections.abc import Iterator

TILE_QUERIES = 256


def forest_attention_reference(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return attention outputs [T, H, D] by one dense mask. The specification.

    `window`: a token sees at most this many of the latest positions, itself included.
    """
    visible_TT = spans.visible().to(q_HTD.device)
    if window is not None:
        position_T = positions_of(spans).to(q_HTD.device)
        visible_TT = visible_TT & (position_T[:, None] - position_T[None, :] < window)
    group = q_HTD.shape[0] // k_KTD.shape[0]
    scores_HTT = (q_HTD @ k_KTD.repeat_interleave(group, 0).transpose(1, 2)).float() * scale
    if softcap is not None:
        scores_HTT = softcap * torch.tanh(scores_HTT / softcap)
    probs_HTT = torch.softmax(scores_HTT.masked_fill(~visible_TT, float("-inf")), -1).to(q_HTD.dtype)
    return (probs_HTT @ v_KTD.repeat_interleave(group, 0)).transpose(0, 1)


def positions_of(spans: Spans) -> Tensor:
    """Return the position of every token on its path, [T]."""
    firsts: list[int] = []
    parts: list[Tensor] = []
    for start, end, parent in zip(spans.start, spans.end, spans.parent, strict=True):
        first = 0 if parent < 0 else firsts[parent] + spans.end[parent] - spans.start[parent]
        firsts.append(first)
        parts.append(torch.arange(first, first + end - start))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some queries of one span and the keys that any of them sees."""

    start: int
    end: int
    keys: tuple[tuple[int, int], ...]
    """Token ranges of the keys, in order of position."""
    first_key: int
    """Position of the first key."""
    first_query: int
    """Position of the first query."""


def _clip(ranges: list[tuple[int, int]], low: int) -> tuple[tuple[int, int], ...]:
    """Drop the first `low` tokens of consecutive ranges."""
    kept: list[tuple[int, int]] = []
    for start, end in ranges:
        cut = min(low, end - start)
        low -= cut
        if start + cut < end:
            kept.append((start + cut, end))
    return tuple(kept)


@lru_cache(maxsize=64)
def _tiles(spans: Spans, window: int | None) -> tuple[_Tile, ...]:
    tiles: list[_Tile] = []
    for index, (start, end) in enumerate(zip(spans.start, spans.end, strict=True)):
        above = [(spans.start[a], spans.end[a]) for a in spans.ancestors(index)]
        num_above = sum(e - s for s, e in above)
        for first in range(start, end, TILE_QUERIES):
            last = min(first + TILE_QUERIES, end)
            position = num_above + first - start
            first_key = 0 if window is None else max(0, position - window + 1)
            tiles.append(_Tile(first, last, _clip([*above, (start, last)], first_key), first_key, position))
    return tuple(tiles)


@lru_cache(maxsize=256)
def _hidden_mask(num_queries: int, num_keys: int, gap: int, window: int | None) -> Tensor | None:
    """Return True where key j is hidden from query i (whose own key is j = gap + i), or None if none is."""
    age_LM = torch.arange(num_queries)[:, None] + gap - torch.arange(num_keys)[None, :]
    hidden_LM = age_LM < 0
    if window is not None:
        hidden_LM |= age_LM >= window
    return hidden_LM if bool(hidden_LM.any()) else None


def _gather(x_KTD: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    parts = [x_KTD[:, start:end] for start, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _scores(
    q_KRD: Tensor, k_KMD: Tensor, tile: _Tile, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Return masked scores [K, group, L, M] in float32. R is group * L."""
    num_queries, num_keys = tile.end - tile.start, k_KMD.shape[1]
    scores = torch.bmm(q_KRD, k_KMD.transpose(1, 2)).float().mul_(scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores = scores.view(q_KRD.shape[0], -1, num_queries, num_keys)
    hidden_LM = _hidden_mask(num_queries, num_keys, tile.first_query - tile.first_key, window)
    return scores if hidden_LM is None else scores.masked_fill_(hidden_LM.to(scores.device), float("-inf"))


def _each(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, spans: Spans, window: int | None
) -> Iterator[tuple[_Tile, Tensor, Tensor, Tensor]]:
    num_key_heads, size = k_KTD.shape[0], q_HTD.shape[2]
    for tile in _tiles(spans, window):
        q_KRD = q_HTD[:, tile.start : tile.end].reshape(num_key_heads, -1, size)
        yield tile, q_KRD, _gather(k_KTD, tile.keys), _gather(v_KTD, tile.keys)


class _ForestAttention(torch.autograd.Function):
    """Plain products over tiles; keeps one number a query (log of the softmax sum) instead of probabilities.

    Scores are made again in the backward pass, as in FlashAttention (arXiv:2205.14135, section 3.1).
    """

    @staticmethod
    def forward(ctx, q_HTD, k_KTD, v_KTD, spans, scale, window, softcap):
        num_heads, num_tokens, size = q_HTD.shape
        out_THD = q_HTD.new_empty(num_tokens, num_heads, size)
        lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=q_HTD.device)
        for tile, q_KRD, k_KMD, v_KMD in _each(q_HTD, k_KTD, v_KTD, spans, window):
            rows = slice(tile.start, tile.end)
            scores = _scores(q_KRD, k_KMD, tile, scale, window, softcap)
            peak = scores.amax(-1, keepdim=True)
            exps = scores.sub_(peak).exp_()
            total = exps.sum(-1, keepdim=True)
            lse_HT[:, rows] = (peak + total.log()).view(num_heads, -1)
            probs = exps.div_(total).to(v_KMD.dtype).view(q_KRD.shape[0], -1, v_KMD.shape[1])
            out_THD[rows] = torch.bmm(probs, v_KMD).view(num_heads, -1, size).transpose(0, 1)
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, out_THD, lse_HT)
        ctx.options = spans, scale, window, softcap
        return out_THD

    @staticmethod
    def backward(ctx, *grads):
        q_HTD, k_KTD, v_KTD, out_THD, lse_HT = ctx.saved_tensors
        spans, scale, window, softcap = ctx.options
        num_key_heads, size = k_KTD.shape[0], q_HTD.shape[2]
        shared = any(parent >= 0 for parent in spans.parent) or window is not None or _has_split_spans(spans)
        make = torch.zeros_like if shared else torch.empty_like
        dq_HTD, dk_KTD, dv_KTD = torch.empty_like(q_HTD), make(k_KTD), make(v_KTD)
        for tile, q_KRD, k_KMD, v_KMD in _each(q_HTD, k_KTD, v_KTD, spans, window):
            rows = slice(tile.start, tile.end)
            num_queries, num_keys = tile.end - tile.start, k_KMD.shape[1]
            d_KRD = grads[0][rows].transpose(0, 1).reshape(num_key_heads, -1, size)
            out_KRD = out_THD[rows].transpose(0, 1).reshape(num_key_heads, -1, size)
            scores = _scores(q_KRD, k_KMD, tile, scale, window, softcap)
            slope = None if softcap is None else 1 - (scores / softcap).masked_fill(scores.isinf(), 0.0) ** 2
            probs = scores.sub_(lse_HT[:, rows].reshape(num_key_heads, -1, num_queries, 1)).exp_()
            probs_KRM = probs.view(num_key_heads, -1, num_keys)
            dv = torch.bmm(probs_KRM.to(d_KRD.dtype).transpose(1, 2), d_KRD)
            d_probs = torch.bmm(d_KRD, v_KMD.transpose(1, 2)).float()
            delta = (d_KRD.float() * out_KRD.float()).sum(-1, keepdim=True)
            d_scores = d_probs.sub_(delta).mul_(probs_KRM).mul_(scale)
            if slope is not None:
                d_scores.mul_(slope.view_as(d_scores))
            d_scores = d_scores.to(q_KRD.dtype)
            dq_HTD[:, rows] = torch.bmm(d_scores, k_KMD).view(-1, num_queries, size)
            dk = torch.bmm(d_scores.transpose(1, 2), q_KRD)
            _scatter(dk_KTD, dk, tile.keys, shared)
            _scatter(dv_KTD, dv, tile.keys, shared)
        return dq_HTD, dk_KTD, dv_KTD, None, None, None, None


def _has_split_spans(spans: Spans) -> bool:
    return any(end - start > TILE_QUERIES for start, end in zip(spans.start, spans.end, strict=True))


def _scatter(into_KTD: Tensor, d_KMD: Tensor, ranges: tuple[tuple[int, int], ...], shared: bool) -> None:  # noqa: FBT001
    """Add gradients back to the token ranges they were gathered from; overwrite where no other tile writes."""
    done = 0
    for start, end in ranges:
        part = d_KMD[:, done : done + end - start]
        if shared:
            into_KTD[:, start:end] += part
        else:
            into_KTD[:, start:end] = part
        done += end - start


def _sample(spans: Spans, **options: object):
    def make(dtype: torch.dtype) -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(7)
        num_tokens = max(spans.end, default=0)
        q = torch.randn(4, num_tokens, 8, generator=generator).to(dtype)
        k, v = torch.randn(2, 2, num_tokens, 8, generator=generator).to(dtype).unbind(0)
        return q, k, v, spans, 0.35, options.get("window"), options.get("softcap")

    return make


_TREE = Spans((0, 5, 9, 12, 20), (5, 9, 12, 20, 27), (-1, 0, 0, 2, -1))
_LONG = Spans((0, 300), (300, 640), (-1, 0))
FOREST_ATTENTION = add(
    Op(
        "forest_attention",
        forest_attention_reference,
        samples=[
            _sample(Spans((0,), (1,), (-1,))),
            _sample(Spans((0, 7), (7, 40), (-1, -1))),
            _sample(_TREE),
            _sample(_TREE, window=4),
            _sample(_TREE, softcap=3.0),
            _sample(_LONG),
            _sample(_LONG, window=100, softcap=3.0),
        ],
    )
)


@FOREST_ATTENTION.backend("torch")
def forest_attention(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Compute what the reference does, one tile of queries at a time."""
    return _ForestAttention.apply(q_HTD, k_KTD, v_KTD, spans, scale, window, softcap)  # pyright: ignore[reportReturnType]
