"""Adapters on the disk, as scripts write and name them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from luthier.core.errors import ModelError
from luthier.models import rope
from luthier.models.adapters import LEARNING, WEIGHTS, has_adapter
from luthier.models.quantized import QuantizedLinear

_numbers = count(1)


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """An adapter that answers: what `load_lora` returns."""

    lora_name: str
    lora_path: str
    lora_int_id: int


def save_lora(self: Any, save_directory: str, *, adapter_name: str = LEARNING) -> None:
    """Write the low-rank matrices alone, in peft's layout. Raises TypeError when the model has no adapter."""
    from peft import get_peft_model_state_dict

    if not hasattr(self, "peft_config"):
        raise TypeError("save_lora: this model has no adapter; put one on it with get_peft_model")
    state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if ".lora_" in name}
    config = copy(self.peft_config[adapter_name])
    config.inference_mode, config.modules_to_save = True, None
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def load_lora(self: Any, save_directory: str, load_tensors: bool = False) -> LoraRequest:
    """Return an adapter folder for `lora_request`. Raises OSError when there is none."""
    del load_tensors  # tensors are read when the adapter answers
    folder = Path(save_directory)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no adapter ({WEIGHTS}); save_lora writes one")
    return LoraRequest(folder.name, str(folder), next(_numbers))


def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    """Write the adapter, or a model without one, as transformers and peft do, and how positions were stretched.

    Raises ModelError for a quantized model without an adapter, whose codes nothing else could read.
    """
    if not has_adapter(self) and any(isinstance(module, QuantizedLinear) for module in self.modules()):
        raise ModelError(
            "save_pretrained: this model is kept in 4 or 8 bits, which other programs could not read back; "
            "save_pretrained_merged writes it with 16 bits",
            code="model_quantization",
        )
    done = type(self).save_pretrained(self, save_directory, *args, **kwargs)
    if has_adapter(self):
        rope.write(self, Path(save_directory))
    return done
