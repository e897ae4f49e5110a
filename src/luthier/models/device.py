"""Which device and number format, with the reason in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import ConfigError
from luthier.kernels.cpu import FAST_BFLOAT16_FLAGS, has_fast_bfloat16

if TYPE_CHECKING:
    from luthier.config.schema import ModelConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and in what form a model computes."""

    device: torch.device
    dtype: torch.dtype
    """Of the weights as loaded."""
    autocast: torch.dtype | None
    """Of activations where weights that learn stay in float32."""
    reason: str


def place(config: ModelConfig, *, base_learns: bool = False) -> Placement:
    """Choose device and dtype. Parameters that learn are always float32.

    Raises ConfigError when a device is asked for that is not here.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda was asked for, but torch finds no GPU; set device: auto, or run `luthier doctor`"
        )
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    wanted, reason = _dtype(config.dtype, on_gpu=on_gpu)
    reason = f"{device.type}, {str(wanted).removeprefix('torch.')}: {reason}"
    if base_learns and wanted != torch.float32:
        return Placement(device, torch.float32, wanted, f"{reason}; weights that learn stay in float32")
    return Placement(device, wanted, None, reason)


def _dtype(asked: str, *, on_gpu: bool) -> tuple[torch.dtype, str]:
    if on_gpu:
        fast = torch.cuda.is_bf16_supported()
        why = "the GPU multiplies bfloat16" if fast else "the GPU has no bfloat16"
    else:
        fast = has_fast_bfloat16()
        flags = " or ".join(FAST_BFLOAT16_FLAGS)
        why = (
            "the processor multiplies bfloat16"
            if fast
            else f"the processor has neither {flags}, so bfloat16 would be slower"
        )
    if asked == "float32":
        return torch.float32, "as asked"
    if asked == "bfloat16" and fast:
        return torch.bfloat16, "as asked"
    return (torch.bfloat16 if fast else torch.float32), why
