"""Safetensors files written tensor by tensor: one tensor is in memory at a time.

The layout is that of https://github.com/huggingface/safetensors: the length of the header, the header as JSON, and
the tensors one after the other.
"""

from __future__ import annotations

import json
import math
import os
import struct
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import ModelError
from luthier.core.faults import fault_point
from luthier.core.progress import following
from luthier.export.source import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from luthier.export.source import Weight

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
NUMBERS_AT_A_TIME = 1 << 22
INDEX = "model.safetensors.index.json"


def write_shards(weights: Mapping[str, Weight], folder: Path, *, dtype: torch.dtype, shard_bytes: int) -> list[Path]:
    """Write `weights`, numbers with a point as `dtype`, into as few files of at most `shard_bytes` as they need.

    Raises ModelError for a weight that is not finite, and OSError when the disk is full.
    """
    shards = _divided(weights, dtype, shard_bytes)
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, shard in following(list(zip(names, shards, strict=True))):
        _write(folder / name, shard, dtype)
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(_size(weight, dtype) for weight in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return [folder / name for name in names]


def _divided(weights: Mapping[str, Weight], dtype: torch.dtype, shard_bytes: int) -> list[dict[str, Weight]]:
    shards: list[dict[str, Weight]] = [{}]
    filled = 0
    for name, weight in weights.items():
        size = _size(weight, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = weight
        filled += size
    return shards


def _form(weight: Weight, dtype: torch.dtype) -> torch.dtype:
    return dtype if weight.dtype.is_floating_point else weight.dtype


def _size(weight: Weight, dtype: torch.dtype) -> int:
    return math.prod(weight.shape) * _form(weight, dtype).itemsize


def _write(file: Path, weights: Mapping[str, Weight], dtype: torch.dtype) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, weight in weights.items():
        end = place + _size(weight, dtype)
        form = _NAMES[_form(weight, dtype)]
        header[name] = {"dtype": form, "shape": list(weight.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name, weight in following(weights.items()):
            opened.write(_bytes(name, weight, _form(weight, dtype)))
            fault_point("export.tensor")
        opened.flush()
        os.fsync(opened.fileno())


def _bytes(name: str, weight: Weight, form: torch.dtype) -> memoryview:
    tensor = weight.read()
    if tuple(tensor.shape) != weight.shape:
        raise ModelError(f"{name} is {tuple(tensor.shape)}, announced as {weight.shape}", code="model_damaged")
    rounded = tensor.to(form).contiguous()
    if form.is_floating_point and not _is_finite(rounded):
        why = f" in {str(form).removeprefix('torch.')}" if _is_finite(tensor) else ""
        raise ModelError(f"{name} is not finite{why}; try export_dtype: float32", code="model_nan")
    return rounded.reshape(-1).view(torch.uint8).numpy().data


def _is_finite(tensor: Tensor) -> bool:
    # In parts: the check of a whole tensor takes several times its memory.
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(NUMBERS_AT_A_TIME))
