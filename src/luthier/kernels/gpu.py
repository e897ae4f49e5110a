"""Whether Triton kernels can run here, and what they share. Triton itself is imported where a kernel is first used."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch


@cache
def unusable() -> str | None:
    """Return why Triton kernels cannot run here, or None. TRITON_INTERPRET=1 runs them on the processor, slowly."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        return "there is no GPU"
    return None


def power_of_two(size: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least `size` and `least`."""
    return max(least, 1 << max(0, size - 1).bit_length())


def takes(*tensors: torch.Tensor) -> bool:
    """Tell whether Triton's products take these tensors: all of one dtype that GPUs multiply fast."""
    kinds = {t.dtype for t in tensors}
    return len(kinds) == 1 and kinds <= {torch.float32, torch.bfloat16, torch.float16}
