"""A live model on its way to an export: written out, exported, verified, and put where scripts expect it."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from luthier.config.load import load_config
from luthier.core.errors import ExportError, RunError
from luthier.core.log import logger, say_once
from luthier.core.paths import beside, write_whole
from luthier.export.card import public
from luthier.export.gguf import FORMS
from luthier.facade.held import held_of
from luthier.models.adapters import LEARNING, has_adapter, save_trained
from luthier.models.load import parameter_counts
from luthier.workflows.export import REPORT, UNVERIFIED, export_model

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from luthier.config.schema import RunConfig
    from luthier.facade.held import Held

HALVES = (torch.bfloat16, torch.float16)
_SPARE = 1.1
_WEIGHTS = re.compile(r"(model|pytorch_model)([-.].*)?\.(safetensors|bin)(\.index\.json)?")
_OF_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@contextmanager
def written(model: Any, tokenizer: Any, target: Path) -> Generator[tuple[RunConfig, Path]]:
    """Write the model as it is now beside `target`; give settings that load it and a folder for what only work needs.

    An adapter is written alone. Without one the whole model is, unless its weights are quantized: then the files that
    it was loaded from are what it is.
    """
    held = held_of(model)
    workplace = beside(target.absolute())
    live = workplace / base_name(model)
    live.mkdir(parents=True)
    try:
        if has_adapter(model):
            _write_adapter(model, live)
            below = [str(folder) for folder in held.files.below.adapters]
            named = {"model_name_or_path": _base_name(held), "adapter_name_or_path": (*below, str(live))}
            settings = replace(held.model, **named)
        elif held.model.quantization == "none":
            model.save_pretrained(live)
            # What it was loaded with is part of it now.
            named = {"model_name_or_path": str(live), "adapter_name_or_path": (), "model_revision": "main"}
            settings = replace(held.model, rope_scaling="none", **named)
        else:
            settings = held.model
        (tokenizer if tokenizer is not None else held.tokenizer).save_pretrained(live)
        yield _run(held, settings), workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _base_name(held: Held) -> str:
    """Return what loads the model below its adapters: the name that was given, where it names no adapter."""
    return held.files.base if held.files.adapters else held.model.model_name_or_path


def _write_adapter(model: Any, folder: Path) -> None:
    named = {name: config.base_model_name_or_path for name, config in getattr(model, "peft_config", {}).items()}
    try:
        save_trained(model, folder, named.get(LEARNING) or held_of(model).files.base)
    finally:
        for name, base in named.items():
            model.peft_config[name].base_model_name_or_path = base


def _run(held: Held, settings: Any) -> RunConfig:
    tuned = {"finetuning_type": "full"} if held.full_finetuning else {}
    config = load_config({"model_name_or_path": settings.model_name_or_path, **tuned}).config
    return replace(config, model=settings, data=replace(config.data, cutoff_len=held.max_seq_length))


def base_name(model: Any) -> str:
    """Return the base model's name as its publisher writes it, without owner and folders."""
    held = held_of(model)
    return public(held.files.public_base).rpartition("/")[2] or "model"


def half_of(model: Any) -> str:
    """Return the 16-bit number format of merged weights: that of the base, else bfloat16, which has float32's range."""
    from luthier.models.foreign import read_layout

    held = held_of(model)
    remote = held.model.allow_remote_code
    declared = read_layout(held.files.base, revision=held.model.model_revision, allow_remote_code=remote).config.dtype
    return str(declared if declared in HALVES else torch.bfloat16).removeprefix("torch.")


# ---- exporting


def exported(config: RunConfig, workplace: Path, target: Path, **export: Any) -> Path:
    """Export and verify in `workplace`, and return the folder.

    Raises ExportError when it is not what it should be; it then lies beside `target`, under a name that says so.
    """
    out = workplace / str(export["export_format"])
    settings = replace(config.export, export_dir=str(out), **export)
    try:
        (done,) = export_model(replace(config, export=settings))
    except ExportError as error:
        bad = out.with_name(out.name + UNVERIFIED)
        kept = target.with_name(f"{target.name}{UNVERIFIED}")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(str(bad if bad.exists() else out), str(kept))
        raise ExportError(str(error).replace(str(bad), str(kept)).replace(str(out), str(kept))) from error
    return done.folder


def put(files: Sequence[Path], target: Path) -> None:
    """Move files into `target`, in place of those that have their names.

    Weights of an earlier model go; an adapter that lies there moves into a folder of its own, because libraries would
    read it instead of the model.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = {file.name for file in files}
    if any(_WEIGHTS.fullmatch(name) for name in names):
        for old in target.iterdir():
            if _WEIGHTS.fullmatch(old.name) and old.name not in names:
                old.unlink()
        _set_aside(target)
    for file in files:
        shutil.move(str(file), str(target / file.name))


def _set_aside(target: Path) -> None:
    adapter = [target / name for name in _OF_ADAPTERS if (target / name).exists()]
    if not adapter:
        return
    aside = target / "adapter"
    aside.mkdir(exist_ok=True)
    for file in adapter:
        shutil.move(str(file), str(aside / file.name))
    logger.info("%s held an adapter, which lies in %s now: libraries would read it instead of the model", target, aside)


def rewrite(folder: Path, words: dict[str, str]) -> None:
    """Exchange words in the texts beside a model: names of files, and what only a run of `luthier train` would know."""
    for file in (folder / "README.md", folder / REPORT):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            for word, other in words.items():
                text = text.replace(word, other)
            file.write_text(text, encoding="utf-8")


def agree_on_end(folder: Path, tokenizer: Any) -> None:
    """Let generation end with the tokenizer's end token, which a chat template may have chosen, beside the model's."""
    file, end = folder / "generation_config.json", tokenizer.eos_token_id
    facts = json.loads(file.read_text(encoding="utf-8"))
    known = facts.get("eos_token_id")
    ids = known if isinstance(known, list) else [] if known is None else [known]
    if end is not None and end not in ids:
        facts["eos_token_id"] = [end, *ids]
        write_whole(file, json.dumps(facts, indent=2) + "\n")
        say_once(f"answers end with {tokenizer.eos_token} too: the generation config of the merged model says so")


def card_words(model: Any) -> dict[str, str]:
    """Return what a card shall not claim: scripts train by methods that nobody told us."""
    base = public(held_of(model).files.public_base)
    own = base.rpartition("/")[2]
    return {" after sft with ": ", fine-tuned with ", "- sft\n": "", f"base_model: {own}\n": f"base_model: {base}\n"}


# ---- space


def check_space(model: Any, target: Path, *, forms: Sequence[str] = (), merged: bool = True) -> None:
    """Raise RunError when the disk has less room than the export takes, before anything is written."""
    count = parameter_counts(model)[0]
    bits = [float(re.findall(r"[\d.]+", FORMS[form].bits)[0]) for form in forms]
    between = 16.0 if any(FORMS[form].maker != "here" for form in forms) else 0.0
    live = 0.0 if has_adapter(model) or held_of(model).model.quantization != "none" else 32.0
    needed = _SPARE * count * (sum(bits) + between + live + 16.0 * merged) / 8
    folder = next(each for each in (target.absolute(), *target.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"disk full: saving takes about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder}; nothing "
            "was written",
            code="disk_full",
        )
