"""A decoder's pass in plain torch: the specification of the C++ one, and what runs where nothing can be compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.models.decoder_parts import PAGE, Parts, Step, bias_of, weight_of

if TYPE_CHECKING:
    from luthier.models.low_rank import Adapter


class TorchDecoder:
    """Works on any device, in the dtype of the model."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.cache_dtype = parts.embedding.dtype
        self._weights = [
            {name: [(weight_of(m), bias_of(m)) for m in modules] for name, modules in layer.linears.items()}
            for layer in parts.layers
        ]
        self._head = weight_of(parts.head), bias_of(parts.head)
        self._angles = parts.angles(512)
        self._adapters: list[Adapter] = []

    def add_adapter(self, adapter: Adapter) -> int:
        """Keep what an adapter adds, and return the number that steps name it by."""
        self._adapters.append(adapter)
        return len(self._adapters) - 1

    def hidden(self, step: Step, pages: Tensor) -> Tensor:
        """Return what the last norm makes of the wanted rows, [N, D]; writes into `pages`."""
        f, parts = self._parts.facts, self._parts
        self._angles = parts.reach(self._angles, step.tables.shape[1] * PAGE)
        x = F.embedding(step.ids, parts.embedding) * f["embedding_scale"]
        for index, layer in enumerate(parts.layers):
            qkv = self._linear(_norm(x, layer.gains["before_attention"], f["eps"]), index, "qkv", step)
            out = self._linear(self._attention(qkv, index, step, pages), index, "out", step)
            x = x + (_norm(out, layer.gains["after_attention"], f["eps"]) if "after_attention" in layer.gains else out)
            both = self._linear(_norm(x, layer.gains["before_mlp"], f["eps"]), index, "gate_up", step)
            gate, up = both.chunk(2, -1)
            mixed = (F.silu(gate) if f["is_silu"] else F.gelu(gate, approximate="tanh")) * up
            out = self._linear(mixed, index, "down", step)
            x = x + (_norm(out, layer.gains["after_mlp"], f["eps"]) if "after_mlp" in layer.gains else out)
        return _norm(x[step.wanted], parts.norm, f["eps"])

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return float32 logits [N, V] of what `hidden` returned."""
        f = self._parts.facts
        weight, bias = self._head
        logits = F.linear(hidden_ND, weight, bias).float() * f["logit_scale"]
        cap = f["final_softcap"]
        return cap * torch.tanh(logits / cap) if cap else logits

    def _linear(self, x: Tensor, index: int, product: str, step: Step) -> Tensor:
        outs = [F.linear(x, weight, bias) for weight, bias in self._weights[index][product]]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
        for number, rows in step.turns:
            part = self._adapters[number][index].get(product)
            if part is not None:
                own = slice(None) if rows is None else rows
                out[own] += (x[own].float() @ part.down_IR @ part.up_RO).to(out.dtype)
        return out

    def _attention(self, qkv: Tensor, index: int, step: Step, pages: Tensor) -> Tensor:
        f, layer = self._parts.facts, self._parts.layers[index]
        heads, kv_heads, size = f["heads"], f["kv_heads"], f["head_size"]
        q, k, v = qkv.view(len(qkv), -1, size).split([heads, kv_heads, kv_heads], 1)
        cos, sin = self._angles[layer.angles][:, step.positions]
        if "query_norm" in layer.gains:
            q, k = _norm(q, layer.gains["query_norm"], f["eps"]), _norm(k, layer.gains["key_norm"], f["eps"])
        q, k = _turn(q, cos, sin), _turn(k, cos, sin)
        page = step.tables[step.sequences, step.positions // PAGE].long()
        cell = step.positions % PAGE
        by_cell = pages.view(*pages.shape[:4], size, PAGE), pages.view(*pages.shape[:4], PAGE, size)
        by_cell[0][page, 0, index, :, :, cell] = k.to(pages.dtype)
        by_cell[1][page, 1, index, :, cell] = v.to(pages.dtype)
        out = torch.empty_like(q)
        for sequence in step.sequences.unique().tolist():
            rows = (step.sequences == sequence).nonzero()[:, 0]
            table = step.tables[sequence, : int(step.positions[rows[-1]]) // PAGE + 1].long()
            keys = by_cell[0][table, 0, index].permute(1, 0, 3, 2).flatten(1, 2).to(q.dtype)
            values = by_cell[1][table, 1, index].permute(1, 0, 2, 3).flatten(1, 2).to(q.dtype)
            out[rows] = self._attend(q[rows], keys, values, step.positions[rows], layer.window)
        return out.flatten(1)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None) -> Tensor:
        f = self._parts.facts
        group = f["heads"] // f["kv_heads"]
        scores = torch.einsum("rhd,hkd->hrk", q, keys.repeat_interleave(group, 0)).float() * f["scale"]
        if f["softcap"]:
            scores = f["softcap"] * torch.tanh(scores / f["softcap"])
        age = positions[:, None] - torch.arange(keys.shape[1], device=q.device)
        hidden = (age < 0) | (age >= window) if window else age < 0
        probs = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1).to(q.dtype)
        # Cells behind the last position hold whatever was there before: 0 * NaN is NaN.
        values = values[:, : int(positions[-1]) + 1]
        return torch.einsum("hrk,hkd->rhd", probs[..., : values.shape[1]], values.repeat_interleave(group, 0))


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * gain).to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    size = cos.shape[-1]
    turning, rest = x[..., :size].float(), x[..., size:]
    low, high = turning.chunk(2, -1)
    turned = turning * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]
    return torch.cat([turned.to(x.dtype), rest], -1)
