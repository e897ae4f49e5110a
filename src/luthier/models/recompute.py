"""Activations that are not kept: computed again in the backward pass, or written to a file until then."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.core.anatomy import decoder_layers
from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

OFFLOADED_BYTES = 1 << 20
"""Smaller tensors stay in memory: reading them back would cost more than they take."""


def recompute_layers(model: nn.Module, count: int) -> None:
    """Keep only the input of the first `count` decoder layers and compute them again in the backward pass.

    The first ones are the last to go back: then what the others kept is free again. Raises ModelError for layers that
    transformers does not recompute.
    """
    for index, layer in enumerate(decoder_layers(model)):
        each: Any = layer
        if not hasattr(each, "gradient_checkpointing"):
            raise ModelError(
                f"{type(layer).__name__} cannot be computed again in the backward pass; "
                "set gradient_checkpointing: false and no memory_budget",
                code="model_recompute",
            )
        each.gradient_checkpointing = index < count
        each._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        # transformers takes caches away from such layers, because they would grow twice; a learned prefix never grows.
        each._can_checkpoint_with_cache = True


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Large tensors that the backward pass waits for go to a file in `folder`, and come back when they are asked for.

    The file has no name: it is gone with the process, whatever ends it. Weights are not written.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as this lives
        self._end = 0
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        super().__init__(self._write, self._read)

    def __enter__(self) -> None:
        """Begin a forward pass; what an earlier one wrote is no longer needed."""
        self._end = 0
        super().__enter__()

    def _write(self, x: Tensor) -> Tensor | tuple[int, torch.Size, torch.dtype]:
        is_weight = x.untyped_storage().data_ptr() in self._weights
        if is_weight or x.nbytes < OFFLOADED_BYTES or x.device.type != "cpu":
            return x
        place, data = self._end, _bytes_of(x.detach().contiguous())
        while data:
            done = os.pwrite(self._file.fileno(), data, self._end)
            self._end, data = self._end + done, data[done:]
        return place, x.shape, x.dtype

    def _read(self, kept: Tensor | tuple[int, torch.Size, torch.dtype]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        place, shape, dtype = kept
        out = torch.empty(shape, dtype=dtype)
        data = _bytes_of(out)
        while data:
            done = os.preadv(self._file.fileno(), [data], place)
            if not done:
                raise OSError("the file of offloaded activations ended early")
            place, data = place + done, data[done:]
        return out


def _bytes_of(x: Tensor) -> memoryview:
    return memoryview(x.view(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
