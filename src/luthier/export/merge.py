"""Hugging Face folders: a merged model, or the adapter alone."""

from __future__ import annotations

import copy
import shutil
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import ModelError
from luthier.core.log import logger
from luthier.export.merged import read_merged
from luthier.export.shards import write_shards
from luthier.export.source import Source, folder_source
from luthier.models import rope
from luthier.models.device import Placement
from luthier.models.foreign import read_layout
from luthier.models.load import find, load_model, load_tokenizer, merge_in
from luthier.models.quantized import make_dense
from luthier.models.reward_files import is_reward_model, save_reward_model
from luthier.models.value import start_head

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.config.schema import ExportConfig, RunConfig
    from luthier.models.load import ModelFiles

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", rope.FILE)
_TOKENIZER_FILES = ("tokenizer", "special_tokens", "vocab", "merges")
_AS_TRAINED = Placement(torch.device("cpu"), torch.float32, None, "merging in float32")


def write_adapter(config: RunConfig, folder: Path) -> None:
    """Copy the adapter on top and its tokenizer. Raises ModelError where there is none."""
    adapter = find(config.model).adapter
    if adapter is None:
        raise ModelError(f"{config.model.model_name_or_path} has no adapter; use export_format: merged")
    for file in adapter.iterdir():
        if file.name in _ADAPTER_FILES or file.name.startswith(_TOKENIZER_FILES):
            shutil.copy2(file, folder / file.name)


def open_source(config: RunConfig, name: str, workplace: Path) -> Source:
    """Return the merged model, unread. One that can only be merged as a whole is written to `workplace` for it."""
    files = find(config.model)
    merged = read_merged(files, config.model, name=name)
    if isinstance(merged, Source):
        return merged
    logger.info("merged in memory, all of it at once: %s", merged)
    workplace.mkdir()
    _write_whole(files, config, workplace, torch.float32)
    return folder_source(workplace, name=name)


def write_merged(config: RunConfig, folder: Path, name: str) -> Source:
    """Merge in float32, round once to the dtype asked for, and return what was written, as it was before rounding.

    A quantized base is merged into as what its codes stand for: that is what the adapter was trained on.
    """
    files = find(config.model)
    kept = _asked_dtype(config.export, files)
    if config.model.quantization != "none":
        logger.info("the base is what its %s weights stand for, as the adapter was trained", config.model.quantization)
    merged = read_merged(files, config.model, name=name)
    if isinstance(merged, Source):
        write_source(merged, folder, dtype=kept, shard_bytes=_shard_bytes(config.export))
    else:
        logger.info("merged in memory, all of it at once: %s", merged)
        _write_whole(files, config, folder, kept)
        merged = folder_source(folder, name=name)
    said = str(kept).removeprefix("torch.")
    logger.info("merged %d adapters in float32, written as %s", len(files.adapters), said)
    return merged


def write_source(source: Source, folder: Path, *, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write an ordinary model folder, tensor by tensor."""
    facts: Any = copy.deepcopy(source.facts)
    facts.dtype = dtype
    write_shards(source.weights, folder, dtype=dtype, shard_bytes=shard_bytes)
    facts.save_pretrained(folder)
    source.generation.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)


def load_unmerged(config: RunConfig) -> Any:
    """Return the model with the adapter on top beside its weights, in float32: what a merged one is held against."""
    from luthier.models.adapters import load_adapter

    files = find(config.model)
    model = merge_in(_load_dense(files, config), files.below.adapters)
    tuned = model if files.adapter is None else load_adapter(model, files.adapter, trainable=False)
    return tuned.eval()


def _load_dense(files: ModelFiles, config: RunConfig) -> Any:
    model = load_model(files, config.model, _AS_TRAINED)
    return model if config.model.quantization == "none" else make_dense(model, torch.float32)


def _write_whole(files: ModelFiles, config: RunConfig, folder: Path, dtype: torch.dtype) -> None:
    tokenizer = load_tokenizer(files, config.model)
    model = merge_in(_load_dense(files, config), files.adapters).to(dtype)
    size = _shard_bytes(config.export)
    if is_reward_model(files):
        # The head keeps all of its digits, whatever the backbone is rounded to.
        head = start_head(model, files, config.model, seed=config.train.seed)
        save_reward_model(model, head, folder, pad=tokenizer.pad_token_id, max_shard_size=size)
    else:
        model.save_pretrained(folder, max_shard_size=size)
    tokenizer.save_pretrained(folder)


def _shard_bytes(config: ExportConfig) -> int:
    return int(config.export_size * 1e9)


def _asked_dtype(config: ExportConfig, files: ModelFiles) -> torch.dtype:
    if config.export_dtype is not None:
        return getattr(torch, config.export_dtype)
    declared = read_layout(files.base).config.dtype
    return declared if isinstance(declared, torch.dtype) else torch.float32
