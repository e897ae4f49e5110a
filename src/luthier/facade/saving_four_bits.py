"""A merged folder in bitsandbytes' NF4 (arXiv:2305.14314), as transformers loads it."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

from luthier.core.errors import DependencyError

if TYPE_CHECKING:
    from pathlib import Path


def check_four_bits() -> None:
    """Raise DependencyError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise DependencyError("merged_4bit is written by bitsandbytes: pip install bitsandbytes, or take merged_16bit")


def write_four_bits(merged: Path, folder: Path, *, shard_bytes: int) -> Path:
    """Round the linear layers of a merged folder to 4 bits, write them to `folder`, and return it."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    form = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(merged, quantization_config=form)
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    for file in merged.iterdir():
        if not (folder / file.name).exists() and "safetensors" not in file.name:
            shutil.copy2(file, folder)
    return folder
