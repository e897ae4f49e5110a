"""Noise on embeddings while learning: NEFTune (arXiv:2310.05914). Shapes: T tokens, D hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from luthier.core.anatomy import plain_model

if TYPE_CHECKING:
    from luthier.core.batch import Spans


class EmbeddingNoise:
    """Adds noise that is even in +-alpha / sqrt(L D) to the embeddings of a row of L tokens, in training mode only."""

    def __init__(self, model: nn.Module, alpha: float) -> None:
        """Puts itself behind the input embeddings of `model`."""
        self.alpha, self.length_T = alpha, torch.zeros(0)
        """L for each token of the next pass."""
        plain_model(model).get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output
        length_T1 = self.length_T.to(output.device, torch.float32)[:, None]
        size_T1 = self.alpha / (length_T1 * output.shape[-1]).sqrt()
        noise = torch.empty(output.shape, dtype=torch.float32, device=output.device).uniform_(-1, 1)
        return output + (noise * size_T1).to(output.dtype)


def row_lengths(spans: Spans) -> Tensor:
    """Return for each token the tokens of its row, [T]; of the longest one where rows share it."""
    upto: list[int] = []
    for start, end, parent in zip(spans.start, spans.end, spans.parent, strict=True):
        upto.append(end - start + (upto[parent] if parent >= 0 else 0))
    longest = list(upto)
    for index in reversed(range(len(spans))):
        if (parent := spans.parent[index]) >= 0:
            longest[parent] = max(longest[parent], longest[index])
    sizes = torch.tensor([end - start for start, end in zip(spans.start, spans.end, strict=True)])
    return torch.tensor(longest).repeat_interleave(sizes) if longest else torch.zeros(0)
