"""Modules that an adapter trains whole, in float32 over a base that is narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from luthier.core.anatomy import plain_model

if TYPE_CHECKING:
    from pathlib import Path

_HOOKED = "_luthier_casts"


def learn_in_float32(model: nn.Module) -> int:
    """Make the learning copies of modules_to_save float32, which small steps need; return how many numbers those are.

    What embeddings give out, and what a head takes in, is cast at that border, so that the rest of the model computes
    in the number format of the base.
    """
    plain: Any = plain_model(model)
    narrow: dict[int, torch.dtype] = {
        id(p): p.dtype
        for name, p in plain.named_parameters()
        if ".modules_to_save." in name and p.dtype in (torch.bfloat16, torch.float16)
    }
    for parameter in plain.parameters():
        if id(parameter) in narrow:
            parameter.data = parameter.data.float()
    for module in plain.modules():
        own = module._parameters.get("weight")  # wrappers pass on the weight of what they wrap
        if id(own) not in narrow or getattr(module, _HOOKED, False):
            continue
        setattr(module, _HOOKED, True)
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_Gives(narrow[id(own)]))
        else:
            module.register_forward_pre_hook(_takes_float32)
    return sum(p.numel() for p in plain.parameters() if id(p) in narrow)


def read_whole(model: nn.Module, folder: Path) -> None:
    """Read the copies of modules_to_save again from an adapter folder, without the rounding of a narrower base."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
        for name, parameter in model.named_parameters():
            path, mark, last = name.partition(".modules_to_save.")
            key = f"{path}.{last.partition('.')[2]}"
            if mark and parameter.requires_grad and key in stored:
                parameter.data.copy_(file.get_tensor(key))


class _Gives:
    """Casts what a module gives out."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(self.dtype)


def _takes_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
