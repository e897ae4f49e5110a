"""The model that a file must agree with: plain transformers in float32, built from the same weights.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.core.types import Sampling
from luthier.engines.hf import HfEngine
from luthier.kernels.cpu import free_memory
from luthier.models.device import Placement
from luthier.models.quantized_files import Stored
from luthier.models.quantized_load import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.export.source import Source


def require_memory(source: Source) -> None:
    """Raise MemoryError where the model in float32 does not fit into the memory that is free."""
    needed, free = 4 * sum(prod(weight.shape) for weight in source.weights.values()), free_memory()
    if needed > free:
        raise MemoryError(f"the model in float32 takes {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")


class Reference:
    """A model of transformers in float32. Holds its weights once: they are read one at a time into their places.

    Raises MemoryError where they do not fit.
    """

    def __init__(self, source: Source) -> None:
        require_memory(source)
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        place = Placement(torch.device("cpu"), torch.float32, None, "the reference of a verification")
        weights = {name: Stored(weight.read) for name, weight in source.weights.items()}
        self.model = load(source.facts, weights, {}, None, place).eval()
        self.model.generation_config = source.generation
        self.tokenizer = source.tokenizer

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], first: int = 0) -> Tensor:
        """Return the logits behind each of `ids` from place `first` on, [N, V]."""
        out = self.model(input_ids=torch.tensor([list(ids)]), logits_to_keep=len(ids) - first, use_cache=False)
        return out.logits[0].float()

    def answers(self, prompts: Sequence[Sequence[int]], most: int) -> list[tuple[int, ...]]:
        """Return what the model greedily says to each prompt, its end token included."""
        found = HfEngine(self.model, self.tokenizer).generate(prompts, Sampling(max_new_tokens=most))
        return [each[0].tokens for each in found]
