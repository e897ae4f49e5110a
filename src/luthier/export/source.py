"""A model as exports see it: settings, tokenizer, and weights that are read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.models.quantized_files import weight_files

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that is not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """As it is stored; a merged weight is read in float32."""
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """What an export is made from."""

    name: str
    """What the model is called in files and cards; no path."""
    facts: Any
    """Configuration of transformers."""
    tokenizer: Any
    generation: Any
    """GenerationConfig of transformers."""
    weights: Mapping[str, Weight]
    """By their names in the files of a Hugging Face folder."""


def folder_source(folder: Path, *, name: str = "") -> Source:
    """Return a source that reads an ordinary model folder. Raises OSError when it is none."""
    from transformers import AutoConfig, AutoTokenizer

    return Source(
        name=name or folder.name,
        facts=AutoConfig.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        generation=generation_of(str(folder)),
        weights=file_weights(weight_files(str(folder), revision="main", allow_pickle=False)),
    )


def generation_of(base: str, revision: str = "main") -> Any:
    """Return the GenerationConfig of a folder or hub name, an empty one where it has none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(base, revision=revision)
    except OSError:
        return GenerationConfig()


def file_weights(files: Iterable[Path]) -> dict[str, Weight]:
    """Return the unread weights of safetensors files by name."""
    from safetensors import safe_open

    found: dict[str, Weight] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping
                part = tensors.get_slice(name)
                found[name] = Weight(tuple(part.get_shape()), DTYPES[part.get_dtype()], _reader(file, name))
    return found


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    from safetensors import safe_open

    def read() -> Tensor:
        # Opened for one tensor: an open file keeps every page in memory that was read from it.
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name)

    return read


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Names of number formats in safetensors files."""
