"""Tensor records between data, policy and objective.

Shapes: T computed tokens, N wanted predictions, S segments, B spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spans:
    """A forest of token spans laid end to end; parents stand before their children.

    A token sees the whole of its ancestors and its own span causally.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    parent: tuple[int, ...]
    """Index of the parent span; -1 for a root."""

    def __len__(self) -> int:
        return len(self.start)

    def ancestors(self, index: int) -> list[int]:
        """Return the spans above span `index`, root first, itself excluded."""
        path: list[int] = []
        index = self.parent[index]
        while index >= 0:
            path.append(index)
            index = self.parent[index]
        return path[::-1]

    def below(self, num_tokens: int) -> Spans:
        """Return the same forest with one root span of `num_tokens` in front, above all that were roots."""
        return Spans(
            (0, *(start + num_tokens for start in self.start)),
            (num_tokens, *(end + num_tokens for end in self.end)),
            (-1, *(parent + 1 for parent in self.parent)),
        )

    def visible(self) -> Tensor:
        """Return the dense mask [T, T]: True where the row's token sees the column's token. The specification."""
        num_tokens = max(self.end, default=0)
        mask_TT = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
        for index, (start, end) in enumerate(zip(self.start, self.end, strict=True)):
            mask_TT[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            for above in self.ancestors(index):
                mask_TT[start:end, self.start[above] : self.end[above]] = True
        return mask_TT


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """A forest of token spans without padding; each segment is a path from a root to a leaf.

    [prompt][chosen][rejected] holds two segments: the prompt is computed once and belongs to both.
    """

    input_ids: Tensor
    """[T] int64, every distinct prefix once."""
    position_ids: Tensor
    """[T] int64, the position inside the segment: a child goes on where its parent ended."""
    spans: Spans
    rows: Tensor
    """[N] int64, index in 0..T-1 of the hidden state that makes prediction n; rows may repeat."""
    targets: Tensor
    """[N] int64, the token predicted."""
    weight: Tensor
    """[N] float32, never 0: what nobody needs is not in N."""
    segment_ids: Tensor
    """[N] int64, 0..S-1."""
    num_segments: int
    streams: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """[N] each: "ref_logp", "old_logp", "advantage" and the like; "ref_hidden" is [N, D]."""
    tags: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """[S] each: "desirable", "group" and the like."""
    origins: tuple[str, ...] = ()
    """Where the S segments come from, as file:line."""
    segment_tokens: int = 0
    """Tokens of all segments before sharing, trailing unused ones included."""
    aside: PackedBatch | None = None
    """What is scored without gradient before this batch is learned from: kto's mismatched answers."""

    @property
    def num_tokens(self) -> int:
        """Return T, the tokens that are computed."""
        return int(self.input_ids.shape[0])

    def sum_by_segment(self, x_N: Tensor) -> Tensor:
        """Add up per-prediction values by segment, [S]."""
        return x_N.new_zeros(self.num_segments).index_add(0, self.segment_ids, x_N)

    def without_predictions(self) -> Self:
        """Return the same tokens with nothing to predict: a rank's share when it has no batch left."""
        none = {name: getattr(self, name)[:0] for name in ("rows", "targets", "weight", "segment_ids")}
        streams = {name: x_N[:0] for name, x_N in self.streams.items()}
        tags = {name: x_S[:0] for name, x_S in self.tags.items()}
        aside = None if self.aside is None else self.aside.without_predictions()
        facts = {"num_segments": 0, "origins": (), "segment_tokens": 0, "aside": aside}
        return replace(self, **none, streams=streams, tags=tags, **facts)

    def with_tag(self, name: str, x_S: Tensor) -> Self:
        """Return the batch with a tag more, [S]."""
        return replace(self, tags={**self.tags, name: x_S})

    def with_stream(self, name: str, x_N: Tensor) -> Self:
        """Return the batch with a stream more, [N]."""
        return replace(self, streams={**self.streams, name: x_N})

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to `device`."""
        moved: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor | PackedBatch):
                moved[each.name] = value.to(device)
            elif isinstance(value, Mapping):
                moved[each.name] = {name: x.to(device) for name, x in value.items()}  # pyright: ignore
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What the policy says about a batch. The [N, V] logits never exist."""

    logp: Tensor
    """[N] log p(targets[n]), in nats, float32; empty where the objective does not read it."""
    entropy: Tensor | None = None
    """[N] entropy of the predicted distribution, in nats."""
    value: Tensor | None = None
    """[N] value or reward head, read where the prediction is made, float32."""
    mean_logp: Tensor | None = None
    """[N] mean of log p over the vocabulary, in nats."""
    top_entropy: Tensor | None = None
    """[N] entropy of the 20 most probable tokens alone, brought to sum 1, in nats; without gradient."""
    divergence: Tensor | None = None
    """[N] KL of the predicted distribution from the reference's: sum of q (log q - log p), in nats."""
    correct: Tensor | None = None
    """[N] 1 where the target is the most probable token, else 0."""
    balance: Tensor | None = None
    """Scalar load-balancing loss of a mixture of experts, for an average token."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """name -> scalar for an average token, of the model itself: the load of the busiest expert and the like."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The scalar SUM of an objective over a batch, never a mean: the trainer divides, once."""

    total: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])
    """name -> (sum, count)."""
    peaks: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """name -> largest value."""
