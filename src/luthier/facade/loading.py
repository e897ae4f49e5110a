"""from_pretrained: the same load as every command's, asked for in other words."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from luthier.config.schema import ModelConfig
from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import first_line, logger, say_once, setup
from luthier.facade.encodings import make_movable
from luthier.facade.held import Held, hold
from luthier.facade.methods import attach
from luthier.facade.modes import CHECKPOINTING, recompute
from luthier.facade.parameters import LOAD_IGNORED, LOAD_REFUSED, LoadArguments, weigh
from luthier.kernels.cpu import prepare_process
from luthier.models.adapters import load_adapter
from luthier.models.aliases import ALIASES
from luthier.models.device import Placement, place
from luthier.models.foreign import read_layout
from luthier.models.lent import lend
from luthier.models.load import ModelFiles, find, load_model, load_tokenizer, merge_in
from luthier.models.quantized import make_mergeable
from luthier.models.quantized_files import other_form
from luthier.models.reward_files import refuse_reward_model
from luthier.models.whole import learn_in_float32

if TYPE_CHECKING:
    from collections.abc import Generator

_DTYPES = {
    "none": "auto", "auto": "auto", "float32": "float32", "float": "float32", "fp32": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "auto", "half": "auto", "fp16": "auto",
}  # fmt: skip
_HALF = ("float16", "half", "fp16")
_QUANTIZED_NAMES = ("-unsloth-bnb-4bit", "-bnb-4bit", "-bnb-8bit", "-4bit")
"""Ends of names of repositories that hold a model quantized before."""
_PUBLISHERS = {
    "llama": "meta-llama", "meta-llama": "meta-llama", "qwen": "Qwen", "gemma": "google", "mistral": "mistralai",
    "mixtral": "mistralai", "smollm": "HuggingFaceTB", "phi": "microsoft", "granite": "ibm-granite",
    "olmo": "allenai", "gpt-oss": "openai", "falcon": "tiiuae",
}  # fmt: skip
"""How the name of a model begins -> who publishes it."""
_ROPES = ("linear", "dynamic", "yarn", "llama3")


def load(arguments: LoadArguments) -> tuple[Any, Any]:
    """Return (model, tokenizer), an ordinary transformers model, or a peft model for an adapter folder.

    Raises a LuthierError that says what is missing or cannot be had here.
    """
    setup()
    weigh(arguments, "from_pretrained", LOAD_IGNORED, LOAD_REFUSED)
    prepare_process(torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 0)
    set_seed(arguments.random_state)
    with _as_hub_user(arguments.token):
        config, files = _found(arguments, _settings(arguments))
        refuse_reward_model(files)
        placement = place(config, base_learns=arguments.full_finetuning)
        logger.info("device: %s", placement.reason)
        tokenizer = load_tokenizer(files, config)
        merged = files.adapters if arguments.full_finetuning else files.below.adapters
        base, config = _base(files, config, placement)
        model = merge_in(base, merged)
    held = Held(
        asked=arguments.model_name,
        files=files,
        model=config,
        tokenizer=tokenizer,
        max_seq_length=_length(arguments, config, model),
        full_finetuning=arguments.full_finetuning,
        checkpointing=CHECKPOINTING.get(arguments.use_gradient_checkpointing),
    )
    if files.adapter is not None and merged[-1:] != files.adapters[-1:]:
        model = load_adapter(model, files.adapter, trainable=True, base=files.public_base)
    if arguments.full_finetuning:
        model.requires_grad_(True)
    logger.debug("kernels: %s", ", ".join(quicken(model)))
    _prepare(tokenizer, held.max_seq_length)
    finish(model, held)
    return model, tokenizer


def quicken(model: Any) -> list[str]:
    """Put kernels into a model that an ordinary trainer will train; return one line for each."""
    learn_in_float32(model)
    make_mergeable(model)
    return lend(model)


def finish(model: Any, held: Held) -> None:
    """Give a model what scripts and trainers look for on it."""
    plain = plain_model(model)
    hold(model, held)
    for each in {id(m): m for m in (plain, model)}.values():
        each.max_seq_length = held.max_seq_length
        attach(each)
    if not hasattr(plain, "warnings_issued"):
        plain.warnings_issued = {}  # trainers of several versions write into it
    recompute(model, on=held.checkpointing is True)


def _prepare(tokenizer: Any, max_seq_length: int) -> None:
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = max_seq_length
    make_movable(tokenizer)


# ---- settings


def _settings(arguments: LoadArguments) -> ModelConfig:
    if arguments.fast_inference:
        say_once("fast_inference: answers come from luthier's own decoder, which reads the weights that learn")
    if isinstance(arguments.device_map, dict) or arguments.device_map in ("auto", "balanced"):
        say_once("device_map: the model is on one device; several train together under torchrun or accelerate")
    where = str(arguments.device_map)
    return ModelConfig(
        model_name_or_path=str(arguments.model_name),
        model_revision=arguments.revision or "main",
        dtype=_dtype(arguments.dtype),
        device="cpu" if where == "cpu" else "cuda" if where.startswith("cuda") else "auto",
        allow_remote_code=arguments.trust_remote_code,
        **_quantization(arguments),
    )


def _dtype(asked: Any) -> Any:
    name = str(asked).removeprefix("torch.").lower()
    if name not in _DTYPES:
        raise ConfigError(f"dtype {asked!r} is not known; there are: None, torch.bfloat16, torch.float32")
    if name in _HALF:
        say_once("dtype float16 is not used: bfloat16 and float32 need no loss scaling; the faster one here is taken")
    return _DTYPES[name]


def _quantization(arguments: LoadArguments) -> dict[str, Any]:
    asked = arguments.quantization_config
    if asked is not None:
        facts = asked if isinstance(asked, dict) else asked.to_dict()
        kind = str(facts.get("bnb_4bit_quant_type") or "fp4") if facts.get("load_in_4bit") else "none"
        return {
            "quantization": "int8" if facts.get("load_in_8bit") else kind,
            "double_quantization": bool(facts.get("bnb_4bit_use_double_quant")),
        }
    if arguments.full_finetuning or arguments.load_in_16bit:
        return {}
    if arguments.load_in_8bit:
        return {"quantization": "int8"}
    return {"quantization": "nf4"} if arguments.load_in_4bit else {}


# ---- names


def _found(arguments: LoadArguments, config: ModelConfig) -> tuple[ModelConfig, ModelFiles]:
    """Return the files behind the name, or behind its other spellings when there is nothing by it."""
    failures: list[ModelError] = []
    for name in [config.model_name_or_path] if arguments.use_exact_model_name else _spellings(arguments.model_name):
        tried = replace(config, model_name_or_path=_kept_here(name, config) if arguments.local_files_only else name)
        try:
            files = find(tried)
            facts = read_layout(
                files.base, revision=config.model_revision, allow_remote_code=config.allow_remote_code
            ).config
        except ModelError as error:
            failures.append(error)
        except (OSError, ValueError, KeyError) as error:
            failures.append(ModelError(f"model {name} cannot be read: {first_line(error)}", code="model_missing"))
        else:
            if name != arguments.model_name:
                logger.warning("%s cannot be had here; %s is loaded instead", arguments.model_name, name)
            return _stretched(arguments, _as_it_is(tried, facts), facts), files
    raise failures[0]


def _spellings(name: str) -> list[str]:
    """Return the names to look for in turn: as it was written, unquantized, as an alias, as its publisher calls it."""
    if Path(name).expanduser().exists() or name.count("/") != 1:
        return [name]
    end = next((end for end in _QUANTIZED_NAMES if name.lower().endswith(end)), "")
    owner, _, own = (name[: len(name) - len(end)] if end else name).partition("/")
    aliases = [alias for alias, facts in ALIASES.items() if facts.hub.rpartition("/")[2].lower() == own.lower()]
    publishers = [who for begin, who in _PUBLISHERS.items() if own.lower().startswith(begin)]
    return list(dict.fromkeys([name, f"{owner}/{own}", *aliases, *(f"{who}/{own}" for who in publishers)]))


def _kept_here(name: str, config: ModelConfig) -> str:
    """Return the folder of a hub name that was fetched before; other names as they are."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if name in ALIASES or Path(name).expanduser().exists() or name.count("/") != 1:
        return name
    try:
        return snapshot_download(name, revision=config.model_revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return name


def _as_it_is(config: ModelConfig, facts: Any) -> ModelConfig:
    """Return settings that leave a model alone that was quantized before."""
    form = other_form(facts)
    if form is None or config.quantization == "none":
        return config
    say_once(f"{config.model_name_or_path} is quantized already ({form}) and stays as it is")
    return replace(config, quantization="none")


def _stretched(arguments: LoadArguments, config: ModelConfig, facts: Any) -> ModelConfig:
    """Return settings that stretch rotary positions as far as asked for, or as max_seq_length needs."""
    limit = getattr(facts.get_text_config(), "max_position_embeddings", None)
    if arguments.rope_scaling and limit:
        asked = dict(arguments.rope_scaling)
        kind = str(asked.get("rope_type", asked.get("type")))
        if kind not in _ROPES:
            raise ConfigError(f"rope_scaling {kind!r} is not known; there are: {', '.join(_ROPES)}")
        return replace(config, rope_scaling=kind, rope_length=round(limit * float(asked["factor"])))  # pyright: ignore[reportArgumentType]
    length = arguments.max_seq_length or 0
    if not limit or length <= limit:
        return config
    rope = getattr(facts.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        logger.warning(
            "max_seq_length %d is above the %d tokens of this model, whose positions cannot be stretched: %d it is",
            length, limit, limit,
        )  # fmt: skip
        return config
    return replace(config, rope_scaling="linear", rope_length=length)


def _length(arguments: LoadArguments, config: ModelConfig, model: Any) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    asked = arguments.max_seq_length or limit or 2048
    return asked if limit is None or config.rope_scaling != "none" else min(asked, limit)


@contextmanager
def _as_hub_user(token: str | None) -> Generator[None]:
    """Let the hub see a token inside the block; it is written nowhere."""
    before = os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if token and before is None:
            del os.environ["HF_TOKEN"]
        elif token and before is not None:
            os.environ["HF_TOKEN"] = before


# ---- weights


def _base(files: ModelFiles, config: ModelConfig, placement: Placement) -> tuple[Any, ModelConfig]:
    try:
        return load_model(files, config, placement), config
    except (ModelError, ConfigError) as error:
        if config.quantization == "none" or error.code not in ("model_quantization", "config"):
            raise
        logger.warning("load_in_4bit and load_in_8bit cannot be had here, so weights keep 16 or 32 bits: %s", error)
        whole = replace(config, quantization="none")
        return load_model(files, whole, placement), whole
