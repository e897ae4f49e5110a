"""Policy: PackedBatch -> Scores. The one module that accelerate wraps.

Shapes: T tokens, N predictions, D hidden, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import angles_move_from, backbone_of, packing_of, plain_model
from luthier.core.batch import PackedBatch, Scores, Spans
from luthier.core.errors import ModelError
from luthier.kernels.attention import positions_of
from luthier.kernels.linear_logprobs import CHUNK_BYTES, LINEAR_LOGPROBS
from luthier.models.distribution import WIDE, Head, read_distribution
from luthier.models.noise import row_lengths
from luthier.models.patch import FOREST
from luthier.models.routing import watched
from luthier.models.virtual import Virtual, virtual_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.protocols import Read
    from luthier.models.noise import EmbeddingNoise

_THROUGH = torch.zeros(1, 1, 1, 1)
"""transformers hands a 4-dimensional mask on as it is; forest attention does not look at it."""


class Policy(nn.Module):
    """Scores packed batches with a transformers or peft model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        autocast: torch.dtype | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        offload: AbstractContextManager[None] | None = None,
        balance: bool = False,
        value_head: nn.Linear | None = None,
    ) -> None:
        """`chunk_bytes`: of logits at a time; `offload`: where activations wait for the backward pass.

        `balance`: also say how evenly the experts are used, and its loss; `value_head`: [1, D], float32.
        """
        super().__init__()
        self.model = model
        self.value_head = value_head
        """Reads a value from the hidden states of this model."""
        self.critic: Policy | None = None
        """A model of its own that says the value instead."""
        self.noise: EmbeddingNoise | None = None
        """What is added to embeddings while learning."""
        self.compared: Callable[[], Head] | None = None
        """Returns the head of the model whose distributions "divergence" compares with."""
        self.temperature = 1.0
        """Log-probabilities and entropy are those of softmax(logits / temperature)."""
        self.autocast, self.chunk_bytes, self.offload = autocast, chunk_bytes, offload
        self.balance = balance

    def forward(self, batch: PackedBatch, *, reads: frozenset[Read] = frozenset({"logp"})) -> Scores:
        """Return what `reads` names of the wanted predictions, [N] each, float32, log-probabilities in nats.

        Only that is computed: for "value" alone the output head is left alone.
        """
        value_N = None
        if "value" in reads and self.critic is not None:
            value_N = self.critic(batch, reads=frozenset({"value"})).value
            reads = reads - {"value"}
        if not reads:
            return Scores(logp=_nothing(batch), value=value_N)
        hidden_TD, routes = self._hidden(batch)
        hidden_ND = hidden_TD.index_select(0, batch.rows)
        scores = Scores(logp=_nothing(batch))
        if reads - {"value"}:
            rows_ND = hidden_ND.to(self.autocast or hidden_ND.dtype)
            scores = self._score(rows_ND, batch, reads)
        scores = replace(scores, value=self._value(hidden_ND) if "value" in reads else value_N)
        if routes is None or not routes.logits_TE:
            return scores
        return replace(scores, balance=routes.balance(), metrics={"expert_load_max": routes.busiest()})

    def _hidden(self, batch: PackedBatch) -> tuple[Tensor, Any]:
        """Return hidden states [T, D] behind the last norm, and where tokens went in a mixture of experts.

        The cache must stay off: with it, transformers silently lets packed rows see each other.
        """
        device = batch.input_ids.device
        number_format = torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()
        with number_format, self.offload if self.offload and torch.is_grad_enabled() else nullcontext():
            virtual = virtual_tokens(self.model)
            with watched(self.model) if self.balance else nullcontext() as routes:
                return (self._alone if self._is_alone(batch) else self._packed)(batch, virtual), routes

    def _value(self, hidden_ND: Tensor) -> Tensor:
        """Return the value [N] of each hidden state; in float32, because small differences are what counts."""
        assert self.value_head is not None, "this model has neither a value head nor a critic"
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return self.value_head(hidden_ND.float())[:, 0]

    def _is_alone(self, batch: PackedBatch) -> bool:
        config = plain_model(self.model).config
        moves_from = angles_move_from(config)
        is_long = moves_from is not None and batch.num_tokens > 0 and int(batch.position_ids.max()) >= moves_from
        return is_long or packing_of(config) == "alone"

    def _packed(self, batch: PackedBatch, virtual: Virtual | None) -> Tensor:
        """Return hidden states [T, D] of one pass over all spans."""
        config, device = plain_model(self.model).config, batch.input_ids.device
        if self.noise is not None:
            self.noise.length_T = row_lengths(batch.spans)
        hidden_TD = backbone_of(self.model)(
            **(_inputs(batch) if virtual is None else virtual.inputs(self.model, batch)),
            use_cache=False,
            **self._visibility(config, batch.spans, virtual, device),
        ).last_hidden_state[0]
        return hidden_TD if virtual is None else hidden_TD[virtual.computed :]

    def _alone(self, batch: PackedBatch, virtual: Virtual | None) -> Tensor:
        """Return hidden states [T, D] of one ordinary pass for each path from a root to a leaf.

        A span that several paths share is computed with each of them, and taken from the first: it is the same in all,
        unless angles move and only some of the paths are long.
        """
        if virtual is not None and virtual.prefix is not None:
            raise ModelError(
                f"a learned prefix needs packed rows, which a {plain_model(self.model).config.model_type} model does "
                "not take; use lora, or prompt tuning"
            )
        spans, found = batch.spans, {}
        for leaf in sorted(set(range(len(spans))) - set(spans.parent)):
            path = [*spans.ancestors(leaf), leaf]
            here_L = torch.cat([torch.arange(spans.start[i], spans.end[i]) for i in path]).to(batch.input_ids.device)
            one = replace(batch, input_ids=batch.input_ids[here_L], position_ids=batch.position_ids[here_L])
            if self.noise is not None:
                self.noise.length_T = torch.full((len(here_L),), len(here_L))
            inputs = _inputs(one) if virtual is None else virtual.inputs(self.model, one)
            hidden_LD = backbone_of(self.model)(**inputs, use_cache=False).last_hidden_state[0, -len(here_L) :]
            sizes = [spans.end[i] - spans.start[i] for i in path]
            for index, part in zip(path, hidden_LD.split(sizes), strict=True):
                found.setdefault(index, part)
        return torch.cat([found[i] for i in range(len(spans))])

    def _visibility(self, config: Any, spans: Spans, virtual: Virtual | None, device: torch.device) -> dict[str, Any]:
        """Return what tells the model which tokens see which."""
        if virtual is not None:
            spans = spans.below(virtual.num_tokens)
        if config._attn_implementation == FOREST:
            return {"attention_mask": _THROUGH.to(device), "forest": spans}
        dtype = self.autocast or next(self.model.parameters()).dtype
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
        # The queries of a prefix are not computed.
        first = 0 if virtual is None else virtual.num_tokens - virtual.computed
        masks = {
            kind: _dense_mask(spans, window if kind == "sliding_attention" else None, dtype)[:, :, first:].to(device)
            for kind in kinds
        }
        return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}

    def _score(self, hidden_ND: Tensor, batch: PackedBatch, reads: frozenset[Read]) -> Scores:
        plain = plain_model(self.model)
        head = Head.of(self.model, self.temperature)
        if reads & WIDE or not head.is_plain:
            rows = max(8, self.chunk_bytes // (4 * plain.config.get_text_config().vocab_size))
            other = (self.compared(), batch.streams["ref_hidden"]) if self.compared and "divergence" in reads else None
            return read_distribution(head, hidden_ND, batch.targets, reads, rows=rows, other=other)
        weight_VD = head.module.weight.to(hidden_ND.dtype)
        packed = plain.config._attn_implementation == FOREST
        call = LINEAR_LOGPROBS.choose(hidden_ND.device.type)[1] if packed else LINEAR_LOGPROBS.reference
        options = head.module.bias, head.scale, head.softcap, "entropy" in reads, self.chunk_bytes
        logp_N, entropy_N = call(hidden_ND, weight_VD, batch.targets, *options)
        return Scores(logp=logp_N, entropy=entropy_N)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the hidden states that make the wanted predictions, [N, D], in the number format of the head."""
        hidden_ND = self._hidden(batch)[0].index_select(0, batch.rows)
        return hidden_ND.to(self.autocast or hidden_ND.dtype)


def _nothing(batch: PackedBatch) -> Tensor:
    return batch.weight.new_zeros(0)


def _inputs(batch: PackedBatch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None]}


def _dense_mask(spans: Spans, window: int | None, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [1, 1, T, T]."""
    visible_TT = spans.visible()
    if window is not None:
        position_T = positions_of(spans)
        visible_TT &= position_T[:, None] - position_T[None, :] < window
    return torch.zeros(visible_TT.shape, dtype=dtype).masked_fill_(~visible_TT, torch.finfo(dtype).min)[None, None]
