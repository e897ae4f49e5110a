"""Saving and uploading as scripts call it. Everything is an export of `luthier export`, verification included."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import first_line, logger
from luthier.core.paths import beside
from luthier.core.types import Sampling
from luthier.export.gguf.metadata import context_length
from luthier.export.ollama import MODELFILE, write_ollama
from luthier.export.source import folder_source
from luthier.export.verify import verify_ollama
from luthier.facade.chat_ollama import keep_modelfile
from luthier.facade.errors import ArgumentError
from luthier.facade.held import held_of
from luthier.facade.hub import open_repository, upload
from luthier.facade.parameters import bind, weigh
from luthier.facade.saving_files import (
    agree_on_end,
    base_name,
    card_words,
    check_space,
    exported,
    half_of,
    put,
    rewrite,
    written,
)
from luthier.facade.saving_four_bits import check_four_bits, write_four_bits
from luthier.facade.saving_words import (
    FULL_PRECISION,
    IGNORED,
    REFUSED,
    GgmlArguments,
    GgufArguments,
    MergedArguments,
    PushGgmlArguments,
    PushGgufArguments,
    PushMergedArguments,
    forms_of,
    gigabytes,
    matrix_of,
    method_of,
)
from luthier.models.adapters import has_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

GGUF_ENDING = "_gguf"
"""What is behind the name of a folder with GGUF files; the folder without it has the merged model."""


# ---- model folders


def save_pretrained_merged(model: Any, *args: Any, **kwargs: Any) -> None:
    """Write the model with its adapter merged, or the adapter alone, verified, into a folder; see MergedArguments.

    Raises ArgumentError for a method that is out of reach, RunError when the disk has too little room, ExportError when
    what was written is not what it should be.
    """
    asked: MergedArguments = bind(MergedArguments, "save_pretrained_merged", args, kwargs)
    weigh(asked, "save_pretrained_merged", IGNORED, REFUSED)
    if not asked.is_main_process:
        return
    api = open_repository(asked.save_directory, token=asked.token, private=asked.private) if asked.push_to_hub else None
    target = Path(asked.save_directory).expanduser()
    save_folder(model, target, asked.tokenizer, asked.save_method, asked.max_shard_size)
    if api is not None:
        upload(api, asked.save_directory, target, message=asked.commit_message)


def push_to_hub_merged(model: Any, *args: Any, **kwargs: Any) -> str:
    """Write what save_pretrained_merged does, upload it, and return the address; see PushMergedArguments.

    Raises ConfigError without a token or a repository to write to, before anything is computed.
    """
    asked: PushMergedArguments = bind(PushMergedArguments, "push_to_hub_merged", args, kwargs)
    weigh(asked, "push_to_hub_merged", IGNORED, REFUSED)

    def write(folder: Path) -> None:
        save_folder(model, folder, asked.tokenizer, asked.save_method, asked.max_shard_size)

    return _pushed(asked, write)


def save_folder(model: Any, target: Path, tokenizer: Any, save_method: str, shard: int | str = "5GB") -> None:
    """Write the model by one of the methods of `method_of`."""
    method = method_of(save_method)
    if method == "lora" and not has_adapter(model):
        raise ArgumentError("save_method 'lora': this model has no adapter; take merged_16bit, which writes all of it")
    if method == "merged_4bit":
        check_four_bits()
    check_space(model, target, merged=method != "lora")
    with written(model, tokenizer, target) as (config, workplace):
        facts = {"export_format": "adapter"} if method == "lora" else {
            "export_format": "merged", "export_dtype": half_of(model), "export_size": gigabytes(shard)
        }  # fmt: skip
        folder = exported(config, workplace, target, **facts)
        if method != "lora":
            agree_on_end(folder, tokenizer if tokenizer is not None else held_of(model).tokenizer)
        if method == "merged_4bit":
            folder = write_four_bits(folder, workplace / "four", shard_bytes=int(gigabytes(shard) * 1e9))
        rewrite(folder, card_words(model))
        put(sorted(folder.iterdir()), target)
    logger.info("saved %s: %s", "the adapter" if method == "lora" else "the merged model", target)


# ---- GGUF


def save_pretrained_gguf(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Write GGUF files and a Modelfile into `<save_directory>_gguf`, and the merged model into `save_directory`.

    See GgufArguments. Returns save_directory, gguf_directory, gguf_files, modelfile_location (None where Ollama cannot
    express the chat template), want_full_precision, is_vlm and fix_bos_token. With save_method="lora" the one file is
    the adapter. Raises what save_pretrained_merged does.
    """
    asked: GgufArguments = bind(GgufArguments, "save_pretrained_gguf", args, kwargs)
    if asked.push_to_hub:
        raise ArgumentError("save_pretrained_gguf writes to the disk; push_to_hub_gguf(repo_id, ...) uploads")
    weigh(asked, "save_pretrained_gguf", IGNORED, REFUSED)
    return save_gguf(model, Path(asked.save_directory).expanduser(), asked)


def push_to_hub_gguf(model: Any, *args: Any, **kwargs: Any) -> str:
    """Upload what save_pretrained_gguf writes: files, config.json, README and Modelfile. Returns the address.

    See PushGgufArguments. Raises ConfigError without a token or a repository, before anything is computed.
    """
    asked: PushGgufArguments = bind(PushGgufArguments, "push_to_hub_gguf", args, kwargs)
    weigh(asked, "push_to_hub_gguf", IGNORED, REFUSED)

    def write(folder: Path) -> None:
        done = save_gguf(model, folder.with_name("whole"), asked)
        shutil.move(done["gguf_directory"], folder)
        if done["save_directory"] is not None:
            shutil.copy2(Path(done["save_directory"]) / "config.json", folder)

    return _pushed(asked, write)


def save_gguf(model: Any, target: Path, asked: GgufArguments | PushGgufArguments) -> dict[str, Any]:
    """Write GGUF files of every form, the merged model that they were made from, and a Modelfile."""
    forms, matrix = forms_of(asked.quantization_method), matrix_of(asked.imatrix_file)
    directory = target.with_name(target.name + GGUF_ENDING)
    tokenizer = asked.tokenizer if asked.tokenizer is not None else held_of(model).tokenizer
    if asked.save_method is not None and method_of(asked.save_method) == "lora":
        return _gguf_adapter(model, target, tokenizer)
    check_space(model, target, forms=forms)
    with written(model, tokenizer, target) as (config, workplace):
        asked_for = {"export_format": "gguf", "export_quantize": forms, "export_imatrix": matrix}
        made = exported(config, workplace, directory, **asked_for)
        merged = exported(config, workplace, target, export_format="merged", export_dtype=half_of(model),
                          export_size=gigabytes(asked.max_shard_size))  # fmt: skip
        names = {file.name: _name_of(model, file) for file in sorted(made.glob("*.gguf"))}
        for name, other in names.items():
            (made / name).rename(made / other)
        rewrite(made, names | card_words(model))
        rewrite(merged, card_words(model))
        agree_on_end(merged, tokenizer)
        modelfile = _modelfile(model, merged, made / names[_first(names, forms)], tokenizer)
        put(sorted(merged.iterdir()), target)
        put(sorted(made.iterdir()), directory)
    files = [str(directory / names[_first(names, (form,))]) for form in forms]
    for file in files:
        logger.info("saved %s", file)
    return _told(target, directory, files, directory / MODELFILE if modelfile else None,
                 full=all(form in FULL_PRECISION for form in forms))  # fmt: skip


def _first(names: dict[str, str], forms: tuple[str, ...]) -> str:
    return next(name for name in names if name.endswith(f"-{forms[0].upper()}.gguf"))


def _name_of(model: Any, file: Path) -> str:
    return f"{base_name(model)}.{file.stem.rpartition('-')[2]}.gguf"


def _told(
    target: Path | None, directory: Path, files: list[str], modelfile: Path | None, *, full: bool
) -> dict[str, Any]:
    return {
        "save_directory": None if target is None else str(target),
        "gguf_directory": str(directory),
        "gguf_files": files,
        "modelfile_location": None if modelfile is None else str(modelfile),
        "want_full_precision": full,
        "is_vlm": False,
        "fix_bos_token": False,
    }


def _modelfile(model: Any, merged: Path, gguf: Path, tokenizer: Any) -> bool:
    """Write a Modelfile beside `gguf` and keep its text with the tokenizer; tell whether Ollama can express it.

    The template is derived from the tokenizer's chat template and rendered both ways; one that differs is not written.
    """
    source = folder_source(merged, name=base_name(model))
    context = min(held_of(model).max_seq_length, context_length(source.facts))
    try:
        write_ollama(source, gguf, gguf.parent, system=None, parameters=Sampling(), context=context)
    except ModelError as error:
        logger.warning("no Modelfile: %s", first_line(error))
        keep_modelfile(tokenizer, "")
        return False
    file = gguf.parent / MODELFILE
    report = verify_ollama(gguf.parent, source)
    wrong = [f"{check.name}: {check.found}" for check in report.checks if check.passed is False]
    if wrong:
        logger.warning("no Modelfile: %s", "; ".join(wrong))
        file.unlink()
    keep_modelfile(tokenizer, "" if wrong else file.read_text(encoding="utf-8"))
    return not wrong


# ---- adapters as GGUF


def save_pretrained_ggml(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Write the adapter as a GGUF file into `<save_directory>_gguf`; see GgmlArguments. Returns the same record."""
    asked: GgmlArguments = bind(GgmlArguments, "save_pretrained_ggml", args, kwargs)
    weigh(asked, "save_pretrained_ggml", IGNORED, REFUSED)
    return _gguf_adapter(model, Path(asked.save_directory).expanduser(), asked.tokenizer)


def push_to_hub_ggml(model: Any, *args: Any, **kwargs: Any) -> str:
    """Upload the adapter as a GGUF file; see PushGgmlArguments. Returns the address."""
    asked: PushGgmlArguments = bind(PushGgmlArguments, "push_to_hub_ggml", args, kwargs)
    weigh(asked, "push_to_hub_ggml", IGNORED, REFUSED)

    def write(folder: Path) -> None:
        shutil.move(_gguf_adapter(model, folder.with_name("whole"), asked.tokenizer)["gguf_directory"], folder)

    return _pushed(asked, write)


def _gguf_adapter(model: Any, target: Path, tokenizer: Any) -> dict[str, Any]:
    if not has_adapter(model):
        raise ArgumentError("this model has no adapter; save_pretrained_gguf without save_method writes all of it")
    directory = target.with_name(target.name + GGUF_ENDING)
    check_space(model, target, merged=False)
    with written(model, tokenizer, target) as (config, workplace):
        made = exported(config, workplace, directory, export_format="gguf_adapter")
        rewrite(made, card_words(model))
        names = [file.name for file in sorted(made.glob("*.gguf"))]
        put(sorted(made.iterdir()), directory)
    files = [str(directory / name) for name in names]
    logger.info("saved %s", files[0])
    return _told(None, directory, files, None, full=True)


# ---- the hub, and what cannot be had


def _pushed(asked: Any, write: Callable[[Path], None]) -> str:
    """Write to a folder, upload it and remove it."""
    revision = getattr(asked, "revision", None)
    api = open_repository(asked.repo_id, token=asked.token, private=asked.private, revision=revision)
    name = asked.repo_id.rpartition("/")[2]
    workplace = beside(Path.cwd() / name)
    folder = workplace / name
    workplace.mkdir()
    try:
        write(folder)
    except BaseException:
        shutil.rmtree(workplace, ignore_errors=True)
        raise
    try:
        address = upload(api, asked.repo_id, folder, message=asked.commit_message, revision=revision)
    except ConfigError as error:
        raise ConfigError(f"{error}; what was to be uploaded lies in {folder}", code=error.code) from error
    shutil.rmtree(workplace, ignore_errors=True)
    return address


def save_pretrained_torchao(model: Any, *args: Any, **kwargs: Any) -> None:
    """Refuse: torchao's forms are no part of this version. Raises ArgumentError that names what can be had."""
    raise ArgumentError(
        "save_pretrained_torchao: torchao's forms are not part of this version; save_pretrained_gguf writes 2 to 16 "
        "bits, save_pretrained_merged(save_method='merged_4bit') bitsandbytes' NF4"
    )


METHODS: dict[str, Callable[..., Any]] = {
    "save_pretrained_merged": save_pretrained_merged,
    "save_pretrained_gguf": save_pretrained_gguf,
    "save_pretrained_ggml": save_pretrained_ggml,
    "save_pretrained_torchao": save_pretrained_torchao,
    "push_to_hub_merged": push_to_hub_merged,
    "push_to_hub_gguf": push_to_hub_gguf,
    "push_to_hub_ggml": push_to_hub_ggml,
}
"""Name of a method -> function whose first argument is the model."""
