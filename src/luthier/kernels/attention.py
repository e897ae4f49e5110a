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
from luthier.kernels import gpu, native
from luthier.kernels.op import Op, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TILE_QUERIES = 256


def forest_attention_reference(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Return attention outputs [T, H, D] by one dense mask. The specification.

    `window`: a token sees at most this many of the latest positions, itself included. `sink_H`: score of a key without
    a value that every token sees (arXiv:2309.17453, learned as in gpt-oss).
    """
    visible_TT = spans.visible().to(q_HTD.device)
    if window is not None:
        position_T = positions_of(spans).to(q_HTD.device)
        visible_TT = visible_TT & (position_T[:, None] - position_T[None, :] < window)
    group = q_HTD.shape[0] // k_KTD.shape[0]
    scores_HTT = (q_HTD @ k_KTD.repeat_interleave(group, 0).transpose(1, 2)).float() * scale
    if softcap is not None:
        scores_HTT = softcap * torch.tanh(scores_HTT / softcap)
    scores_HTT = scores_HTT.masked_fill(~visible_TT, float("-inf"))
    if sink_H is not None:
        sinks_HT1 = sink_H.float()[:, None, None].expand(-1, scores_HTT.shape[1], 1)
        scores_HTT = torch.cat([scores_HTT, sinks_HT1], -1)
    probs_HTT = torch.softmax(scores_HTT, -1)[..., : len(visible_TT)].to(q_HTD.dtype)
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


@dataclass(frozen=True, slots=True)
class _Rule:
    """How raw scores become probabilities."""

    scale: float
    window: int | None
    softcap: float | None

    def masked(self, scores_KRM: Tensor, tile: _Tile) -> Tensor:
        """Return scaled, capped and masked scores in float32; R is group * queries."""
        scores = scores_KRM.float().mul_(self.scale)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        num_queries = tile.end - tile.start
        gap = tile.first_query - tile.first_key
        hidden_LM = _hidden_mask(num_queries, scores.shape[2], gap, self.window)
        if hidden_LM is not None:
            by_query = scores.view(scores.shape[0], -1, num_queries, scores.shape[2])
            by_query.masked_fill_(hidden_LM.to(scores.device), float("-inf"))
        return scores


def _softmax(scores_KRM: Tensor, tile: _Tile, rule: _Rule) -> tuple[Tensor, Tensor]:
    """Return probabilities in the dtype of the scores, and log of the softmax sum [K, R] in float32."""
    scores = rule.masked(scores_KRM, tile)
    peak = scores.amax(-1, keepdim=True)
    exps = scores.sub_(peak).exp_()
    total = exps.sum(-1, keepdim=True)
    return exps.div_(total).to(scores_KRM.dtype), (peak + total.log())[..., 0]


def _softmax_backward(
    scores_KRM: Tensor, d_probs_KRM: Tensor, lse_KR: Tensor, delta_KR: Tensor, tile: _Tile, rule: _Rule
) -> tuple[Tensor, Tensor]:
    """Return probabilities and the gradient of raw scores, in the dtype of the scores."""
    scores = rule.masked(scores_KRM, tile)
    slope = None if rule.softcap is None else 1 - (scores / rule.softcap).masked_fill(scores.isinf(), 0.0) ** 2
    probs = scores.sub_(lse_KR[..., None]).exp_()
    d_scores = d_probs_KRM.float().sub_(delta_KR[..., None]).mul_(probs).mul_(rule.scale)
    if slope is not None:
        d_scores.mul_(slope)
    return probs.to(scores_KRM.dtype), d_scores.to(scores_KRM.dtype)


def _each(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, spans: Spans, window: int | None
) -> Iterator[tuple[_Tile, Tensor, Tensor, Tensor]]:
    for tile in _tiles(spans, window):
        yield tile, _heads(q_HTD, tile, len(k_KTD)), _gather(k_KTD, tile.keys), _gather(v_KTD, tile.keys)


def _heads(x_HTD: Tensor, tile: _Tile, num_key_heads: int) -> Tensor:
    """Return the queries of a tile, grouped by the key head that they share, [K, R, D]."""
    return x_HTD[:, tile.start : tile.end].reshape(num_key_heads, -1, x_HTD.shape[2])


class _ForestAttention(torch.autograd.Function):
    """Plain products over tiles; keeps one number a query (log of the softmax sum) instead of probabilities.

    Scores are made again in the backward pass, as in FlashAttention (arXiv:2205.14135, section 3.1).
    """

    @staticmethod
    def forward(ctx, q_HTD, k_KTD, v_KTD, sink_H, spans, rule):
        num_heads, num_tokens, size = q_HTD.shape
        out_THD = q_HTD.new_empty(num_tokens, num_heads, size)
        lse_HT = torch.empty(num_heads, num_tokens, dtype=torch.float32, device=q_HTD.device)
        for tile, q_KRD, k_KMD, v_KMD in _each(q_HTD, k_KTD, v_KTD, spans, rule.window):
            rows = slice(tile.start, tile.end)
            probs_KRM, lse_KR = _softmax(torch.bmm(q_KRD, k_KMD.transpose(1, 2)), tile, rule)
            lse_HT[:, rows] = lse_KR.view(num_heads, -1)
            out_THD[rows] = torch.bmm(probs_KRM, v_KMD).view(num_heads, -1, size).transpose(0, 1)
        out_THD, lse_HT = _with_sinks(out_THD, lse_HT, sink_H)
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, out_THD, lse_HT, sink_H)
        ctx.options = spans, rule
        return out_THD

    @staticmethod
    def backward(ctx, *grads):
        q_HTD, k_KTD, v_KTD, out_THD, lse_HT, sink_H = ctx.saved_tensors
        spans, rule = ctx.options
        num_key_heads, size = k_KTD.shape[0], q_HTD.shape[2]
        shared = any(parent >= 0 for parent in spans.parent) or rule.window is not None or _has_split_spans(spans)
        make = torch.zeros_like if shared else torch.empty_like
        dq_HTD, dk_KTD, dv_KTD = torch.empty_like(q_HTD), make(k_KTD), make(v_KTD)
        d_HTD = grads[0].transpose(0, 1)
        delta_HT = (grads[0].float() * out_THD).sum(-1).t()
        for tile, q_KRD, k_KMD, v_KMD in _each(q_HTD, k_KTD, v_KTD, spans, rule.window):
            rows = slice(tile.start, tile.end)
            d_KRD = _heads(d_HTD, tile, num_key_heads)
            lse_KR, delta_KR = (x_HT[:, rows].reshape(num_key_heads, -1) for x_HT in (lse_HT, delta_HT))
            scores_KRM = torch.bmm(q_KRD, k_KMD.transpose(1, 2))
            d_probs_KRM = torch.bmm(d_KRD, v_KMD.transpose(1, 2))
            probs_KRM, d_scores_KRM = _softmax_backward(scores_KRM, d_probs_KRM, lse_KR, delta_KR, tile, rule)
            dq_HTD[:, rows] = torch.bmm(d_scores_KRM, k_KMD).view(-1, tile.end - tile.start, size)
            _scatter(dv_KTD, torch.bmm(probs_KRM.transpose(1, 2), d_KRD), tile.keys, shared)
            _scatter(dk_KTD, torch.bmm(d_scores_KRM.transpose(1, 2), q_KRD), tile.keys, shared)
        return dq_HTD, dk_KTD, dv_KTD, _sink_gradient(sink_H, grads[0], out_THD, lse_HT), None, None


def _with_sinks(out_THD: Tensor, lse_HT: Tensor, sink_H: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return outputs and log of the softmax sum as they are with a sink in every sum.

    The backward pass needs nothing else: with these two, the formulas for queries, keys and values stay as they were.
    """
    if sink_H is None:
        return out_THD, lse_HT
    with_HT = torch.logaddexp(lse_HT, sink_H.float()[:, None])
    return (out_THD.float() * (lse_HT - with_HT).exp().t()[..., None]).to(out_THD.dtype), with_HT


def _sink_gradient(sink_H: Tensor | None, d_THD: Tensor, out_THD: Tensor, lse_HT: Tensor) -> Tensor | None:
    """Return the gradient of the sinks: minus probability times what the output weighs, summed over tokens."""
    if sink_H is None:
        return None
    delta_HT = (d_THD.float() * out_THD.float()).sum(-1).t()
    return -((sink_H.float()[:, None] - lse_HT).exp() * delta_HT).sum(1).to(sink_H.dtype)


class _NativeAttention(torch.autograd.Function):
    """Keeps what `_ForestAttention` keeps; both passes in C++."""

    @staticmethod
    def forward(ctx, q_HTD, k_KTD, v_KTD, sink_H, spans, numbers):
        q_HTD, k_KTD, v_KTD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_HTD, k_KTD, v_KTD))
        out_THD, lse_HT = native.module().forest_attention(q_HTD, k_KTD, v_KTD, _table(spans), *numbers)
        out_THD, lse_HT = _with_sinks(out_THD, lse_HT, sink_H)
        ctx.save_for_backward(q_HTD, k_KTD, v_KTD, out_THD, lse_HT, sink_H)
        ctx.options = spans, numbers
        return out_THD

    @staticmethod
    def backward(ctx, *grads):
        (spans, numbers), (*saved, sink_H) = ctx.options, ctx.saved_tensors
        grad_THD = grads[0].contiguous()
        grads_qkv = native.module().forest_attention_backward(grad_THD, *saved, _table(spans), *numbers)
        return *grads_qkv, _sink_gradient(sink_H, grad_THD, *saved[3:]), None, None


@lru_cache(maxsize=64)
def _table(spans: Spans) -> Tensor:
    return torch.tensor([spans.start, spans.end, spans.parent], dtype=torch.long)


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


def _sample(
    spans: Spans,
    *,
    size: int = 8,
    heads: int = 4,
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
) -> Callable[[torch.dtype], tuple[object, ...]]:
    def make(dtype: torch.dtype) -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(7)
        num_tokens = max(spans.end, default=0)
        q = torch.randn(heads, num_tokens, size, generator=generator).to(dtype)
        k, v = torch.randn(2, heads // 2, num_tokens, size, generator=generator).to(dtype).unbind(0)
        sink_H = torch.randn(heads, generator=generator).to(dtype) if sinks else None
        return q, k, v, spans, size**-0.5, window, softcap, sink_H

    return make


_TREE = Spans((0, 5, 9, 12, 20), (5, 9, 12, 20, 27), (-1, 0, 0, 2, -1))
_ODD = Spans((0, 3, 4, 71, 76), (3, 4, 71, 76, 141), (-1, 0, 1, 1, -1))
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
            _sample(Spans((), (), ())),
            _sample(_ODD, size=7, heads=2),
            _sample(_ODD, size=80, heads=6, window=9, softcap=2.0),
            _sample(_LONG),
            _sample(_LONG, window=100, softcap=3.0),
            _sample(_TREE, sinks=True),
            _sample(_ODD, window=9, sinks=True),
        ],
    )
)


@FOREST_ATTENTION.backend("native", native.unusable, device="cpu")
def forest_attention_native(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Compute what the reference does in our own C++."""
    if not native.takes(q_HTD, k_KTD, v_KTD) or q_HTD.shape[2] != v_KTD.shape[2]:
        return forest_attention(q_HTD, k_KTD, v_KTD, spans, scale, window, softcap, sink_H)
    if not q_HTD.shape[1] == k_KTD.shape[1] == v_KTD.shape[1] == max(spans.end, default=0):
        raise ValueError(f"{q_HTD.shape[1]} queries, {k_KTD.shape[1]} keys, spans up to {max(spans.end, default=0)}")
    return _NativeAttention.apply(q_HTD, k_KTD, v_KTD, sink_H, spans, (scale, window or 0, softcap or 0.0))  # pyright: ignore[reportReturnType]


@FOREST_ATTENTION.backend("triton", gpu.unusable, device="cuda")
def forest_attention_triton(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Compute what the reference does in Triton."""
    if sink_H is not None or not gpu.takes(q_HTD, k_KTD, v_KTD):
        return forest_attention(q_HTD, k_KTD, v_KTD, spans, scale, window, softcap, sink_H)
    from luthier.kernels.triton.attention import forest_attention as call

    return call(q_HTD, k_KTD, v_KTD, spans, scale, window, softcap)


@FOREST_ATTENTION.backend("torch")
def forest_attention(
    q_HTD: Tensor,
    k_KTD: Tensor,
    v_KTD: Tensor,
    spans: Spans,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Compute what the reference does, one tile of queries at a time."""
    return _ForestAttention.apply(q_HTD, k_KTD, v_KTD, sink_H, spans, _Rule(scale, window, softcap))  # pyright: ignore[reportReturnType]
