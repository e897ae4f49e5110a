"""The formats of `luthier export`: what each needs, what it writes, and how that is verified."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.schema import RunConfig
from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import logger
from luthier.core.progress import following
from luthier.export.gguf import (
    FORMS,
    adapter_obstacle,
    form_of,
    obstacle,
    quantize_file,
    write_adapter_gguf,
    write_gguf,
)
from luthier.export.gguf.metadata import context_length
from luthier.export.merge import load_unmerged, open_source, write_adapter, write_merged
from luthier.export.neighbours import vllm_notes
from luthier.export.ollama import write_ollama
from luthier.export.source import Source, folder_source
from luthier.export.verify import verify_adapter, verify_gguf, verify_gguf_adapter, verify_merged, verify_ollama
from luthier.export.verify.report import Report
from luthier.models.adapters import check_mergeable, facts_of
from luthier.models.foreign import read_layout
from luthier.models.load import find
from luthier.models.reward_files import is_reward_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """What a format wrote into its folder."""

    verify: Callable[[], list[Report]]
    notes: list[str] = field(default_factory=list)
    """What the format cannot hold."""


@dataclass(frozen=True, slots=True)
class Form:
    """A format."""

    check: Callable[[RunConfig], object]
    """Raises a LuthierError where this model has no such form, before anything is written."""
    write: Callable[[RunConfig, Path, Path, str], Written]
    """Gets the settings, the folder, a name for what only the work needs, and the model's name."""


def source_of(config: RunConfig, workplace: Path, name: str) -> Source:
    """Return the merged model; one that can only be merged as a whole is written to `workplace`."""
    workplace.mkdir(parents=True, exist_ok=True)
    return open_source(config, name, workplace / "merged")


# ---- Hugging Face folders


def _check_merged(config: RunConfig) -> None:
    for folder in find(config.model).adapters:
        check_mergeable(folder)


def _write_merged(config: RunConfig, folder: Path, workplace: Path, name: str) -> Written:
    source = write_merged(config, folder, name)

    def logits_of(prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        return _logits(load_unmerged(config), prompts)

    reward = is_reward_model(find(config.model))
    return Written(lambda: [verify_merged(folder, source=source, logits_of=None if reward else logits_of)])


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits [T, V] of each prompt."""
    import torch

    with torch.inference_mode():
        return [model(input_ids=torch.tensor([list(ids)])).logits[0].float() for ids in prompts]


def _adapter_of(config: RunConfig) -> Path:
    """Return the adapter on top. Raises ModelError where there is none."""
    adapter = find(config.model).adapter
    if adapter is None:
        raise ModelError(f"{config.model.model_name_or_path} has no adapter; use export_format: merged")
    return adapter


def _write_adapter(config: RunConfig, folder: Path, workplace: Path, name: str) -> Written:
    write_adapter(config, folder)
    files, trained = find(config.model), _adapter_of(config)
    return Written(lambda: [verify_adapter(folder, trained=trained, base=files.base)], vllm_notes(facts_of(trained)))


# ---- llama.cpp


def _check_gguf(config: RunConfig) -> None:
    for form in config.export.export_quantize:
        form_of(form)
    if not config.export.export_quantize:
        raise ConfigError(f"export_quantize is empty; it may name: {', '.join(FORMS)}")
    files = find(config.model)
    if is_reward_model(files):
        raise ModelError("a reward model has no form in GGUF; use export_format: merged", code="model_gguf")
    _check_merged(config)
    reason = obstacle(read_layout(files.base, revision=config.model.model_revision).config)
    if reason is not None:
        raise ModelError(reason, code="model_gguf")


def _write_gguf(config: RunConfig, folder: Path, workplace: Path, name: str) -> Written:
    source = source_of(config, workplace, name)
    files = _gguf_files(config, source, folder, workplace, config.export.export_quantize)
    base = _base_source(config)
    return Written(lambda: [verify_gguf(file, source, base=base) for file in following(files)])


def _gguf_files(config: RunConfig, source: Source, folder: Path, workplace: Path, forms: Sequence[str]) -> list[Path]:
    """Write one file for each form; those of llama.cpp's quantizer are made from one of 16 bits."""
    made: list[Path] = []
    imatrix = None if config.export.export_imatrix is None else Path(config.export.export_imatrix).expanduser()
    whole: Path | None = None
    for asked in following(forms):
        form = form_of(asked)
        file = folder / f"{source.name}-{form.name.upper()}.gguf"
        if form.maker == "here":
            write_gguf(source, file, form=form.name)
        else:
            whole = whole or write_gguf(source, workplace / "whole.gguf", form=_wide(source))
            done = quantize_file(whole, file, form.name, imatrix=imatrix, threads=os.cpu_count() or 1)
            if done.fell_back:
                kinds = ", ".join(sorted(set(done.fell_back.values())))
                logger.info("%s: %d tensors do not divide into its blocks and are %s", file.name,
                            len(done.fell_back), kinds)  # fmt: skip
        logger.info("wrote %s (%.1f MB)", file.name, file.stat().st_size / 1e6)
        made.append(file)
    return made


def _wide(source: Source) -> str:
    import torch

    return "bf16" if source.facts.dtype == torch.bfloat16 else "f16"


def _base_source(config: RunConfig) -> Source | None:
    """Return the model without its adapters, where it is an ordinary folder: what training must have moved."""
    files = find(config.model)
    is_plain = files.adapters and Path(files.base).is_dir() and read_layout(files.base).foreign is None
    return folder_source(Path(files.base)) if is_plain else None


def _check_gguf_adapter(config: RunConfig) -> None:
    adapter = _adapter_of(config)
    facts = read_layout(find(config.model).base, revision=config.model.model_revision).config
    reason = obstacle(facts) or adapter_obstacle(facts_of(adapter), facts)
    if reason is not None:
        raise ModelError(reason, code="model_gguf")


def _write_gguf_adapter(config: RunConfig, folder: Path, workplace: Path, name: str) -> Written:
    trained, base = _adapter_of(config), folder_source(Path(find(config.model).base))
    file = write_adapter_gguf(trained, base, folder / f"{name}-LoRA-F32.gguf")
    return Written(lambda: [verify_gguf_adapter(file, trained, base)])


# ---- Ollama


def _write_ollama(config: RunConfig, folder: Path, workplace: Path, name: str) -> Written:
    source = source_of(config, workplace, name)
    (file,) = _gguf_files(config, source, folder, workplace, config.export.export_quantize[:1])
    notes = write_ollama(
        source,
        file,
        folder,
        system=config.data.default_system,
        parameters=config.generate,
        context=min(config.data.cutoff_len, context_length(source.facts)),
    )
    base = _base_source(config)
    verify = (lambda: verify_gguf(file, source, base=base), lambda: verify_ollama(folder, source))
    return Written(lambda: [each() for each in following(verify)], notes)


FORMS_OF_EXPORT = {
    "merged": Form(_check_merged, _write_merged),
    "adapter": Form(_adapter_of, _write_adapter),
    "gguf": Form(_check_gguf, _write_gguf),
    "gguf_adapter": Form(_check_gguf_adapter, _write_gguf_adapter),
    "ollama": Form(_check_gguf, _write_ollama),
}
"""By the name that `export_format` gives them."""
