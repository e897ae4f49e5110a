"""Write a merged model or a bare adapter as an ordinary Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import ModelError, RunError
from luthier.core.log import logger
from luthier.core.paths import beside, sync_folder
from luthier.models.adapters import check_mergeable
from luthier.models.device import Placement
from luthier.models.foreign import read_layout
from luthier.models.inspect import check_safetensors
from luthier.models.load import find, load_model, load_tokenizer, merge_in
from luthier.models.quantized import make_dense
from luthier.models.reward_files import is_reward_model, save_reward_model
from luthier.models.value import start_head
from luthier.runs.store import is_run

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig


def export_target(config: RunConfig) -> Path:
    """Return the folder to write: export_dir, else export/<format> in the run. Raises RunError when it is not empty."""
    name = config.model.model_name_or_path
    if config.export.export_dir is not None:
        target = Path(config.export.export_dir).expanduser()
    elif is_run(Path(name).expanduser()):
        target = Path(name).expanduser() / "export" / config.export.export_format
    else:
        raise RunError("export_dir is required where the model is no run directory")
    if target.exists() and any(target.iterdir()):
        raise RunError(f"export_dir {target} is not empty; choose another folder", code="run_exists")
    return target


def export_model(config: RunConfig) -> Path:
    """Write what `export_format` says; whole or not at all. Returns the folder."""
    target = export_target(config)
    temporary, made_parent = beside(target), not target.parent.exists()
    temporary.mkdir(parents=True)
    try:
        _WRITERS[config.export.export_format](config, temporary)
        for file in temporary.glob("*.safetensors"):
            check_safetensors(file)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if made_parent:
            target.parent.rmdir()
        raise
    sync_folder(target.parent)
    return target


def _write_adapter(config: RunConfig, folder: Path) -> None:
    adapter = find(config.model).adapter
    if adapter is None:
        raise ModelError(f"{config.model.model_name_or_path} has no adapter; use export_format: merged")
    names = ("adapter_config.json", "adapter_model.safetensors", "README.md", "chat_template.jinja")
    for file in adapter.iterdir():
        if file.name in names or file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges")):
            shutil.copy2(file, folder / file.name)


def _write_merged(config: RunConfig, folder: Path) -> None:
    """Merge in float32, then round once to the dtype asked for.

    A quantized base is merged into as what its codes stand for: that is what the adapter was trained on.
    """
    files = find(config.model)
    for adapter in files.adapters:
        check_mergeable(adapter)
    tokenizer = load_tokenizer(files, config.model)
    model = load_model(files, config.model, Placement(torch.device("cpu"), torch.float32, None, "merging in float32"))
    if config.model.quantization != "none":
        model = make_dense(model, torch.float32)
        logger.info("the base is what its %s weights stand for, as the adapter was trained", config.model.quantization)
    kept = _dtype_of(files.base) if config.export.export_dtype is None else getattr(torch, config.export.export_dtype)
    model = merge_in(model, files.adapters)
    logger.info("merged %d adapters in float32, written as %s", len(files.adapters), str(kept).removeprefix("torch."))
    model, size = model.to(kept), int(config.export.export_size * 1e9)
    if is_reward_model(files):
        # The head keeps all of its digits, whatever the backbone is rounded to.
        head = start_head(model, files, config.model, seed=config.train.seed)
        save_reward_model(model, head, folder, pad=tokenizer.pad_token_id, max_shard_size=size)
    else:
        model.save_pretrained(folder, max_shard_size=size)
    tokenizer.save_pretrained(folder)


def _dtype_of(base: str) -> torch.dtype:
    declared = read_layout(base).config.dtype
    return declared if isinstance(declared, torch.dtype) else torch.float32


_WRITERS = {"merged": _write_merged, "adapter": _write_adapter}
