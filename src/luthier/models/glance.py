"""What a model folder shows without a library that computes: size, architecture, template, and why it cannot be used.

Nothing here imports torch; `inspect` looks closer before anything is loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_CONFIG_BYTES = 5_000_000
LARGEST_HEADER_BYTES = 100_000_000
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Glance:
    """A model folder."""

    architecture: str
    parameters: int | None
    """From the headers of safetensors; of quantized files, as many as their tensors have entries."""
    bytes: int
    """Of its weights."""
    has_template: bool
    safetensors: bool
    adapter_of: str
    """Of an adapter, the model that it lies on."""
    problem: str
    """Why it cannot be used."""


def glance_at(folder: Path) -> Glance:
    """Return what a folder with config.json or adapter_config.json, or a GGUF file in it, shows."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    tensors = [name for name in names if name.endswith(".safetensors")]
    adapter = _json(folder / "adapter_config.json") if "adapter_config.json" in names else None
    config = _json(folder / "config.json") or {}
    weights = [name for name in names if name.endswith((".safetensors", ".gguf", *PICKLES))]
    counts = [_parameters(folder / name) for name in tensors]
    return Glance(
        architecture=str(config.get("model_type") or ""),
        parameters=sum(count or 0 for count in counts) if counts and None not in counts else None,
        bytes=sum((folder / name).stat().st_size for name in weights),
        has_template="chat_template.jinja" in names
        or bool((_json(folder / "tokenizer_config.json") or {}).get("chat_template")),
        safetensors=bool(tensors),
        adapter_of=str((adapter or {}).get("base_model_name_or_path") or ""),
        problem=_problem(folder, names, config, is_adapter=adapter is not None, damaged=None in counts),
    )


def _problem(folder: Path, names: list[str], config: dict[str, Any], *, is_adapter: bool, damaged: bool) -> str:
    if any(name.endswith(".gguf") for name in names) and "config.json" not in names:
        return ""
    if damaged:
        return "a file of weights is damaged; download it again"
    pickles = [name for name in names if name.endswith(PICKLES) and "training_args" not in name]
    if not any(name.endswith(".safetensors") for name in names):
        if pickles:
            return f"it has only pickled weights ({pickles[0]}), which can run code; convert them to safetensors"
        return "it has no weights (*.safetensors)"
    missing = _missing_shards(folder, names)
    if missing:
        return f"{missing} is missing; download it again"
    if is_adapter:
        return ""
    if not config.get("model_type"):
        return "its config.json names no model_type"
    return "" if any(name in names for name in TOKENIZERS) else "it has no tokenizer"


def _missing_shards(folder: Path, names: list[str]) -> str:
    index = next((name for name in names if name.endswith(".safetensors.index.json")), None)
    shards = (_json(folder / index) or {}).get("weight_map") if index else None
    if not isinstance(shards, dict):
        return ""
    return min(set(map(str, shards.values())) - set(names), default="")


def _parameters(path: Path) -> int | None:
    """Return the entries of all tensors of a safetensors file from its header; None where it is damaged."""
    try:
        real = path.stat().st_size
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(real - 8, LARGEST_HEADER_BYTES):
                return None
            header = json.loads(file.read(size))
        tensors = [facts for name, facts in header.items() if name != "__metadata__"]
        if max((int(facts["data_offsets"][1]) for facts in tensors), default=0) + 8 + size != real:
            return None
        return sum(math.prod(facts["shape"]) for facts in tensors)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
