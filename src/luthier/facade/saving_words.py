"""The words of scripts for saving: parameters, methods, quantizations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.core.log import printable, say_once
from luthier.core.registry import did_you_mean
from luthier.export.gguf import FORMS
from luthier.facade.errors import ArgumentError

_BUFFERS = "_unsloth_temporary_saved_buffers"


@dataclass(frozen=True, slots=True)
class MergedArguments:
    """What save_pretrained_merged takes."""

    save_directory: str
    tokenizer: Any = None
    save_method: str = "merged_16bit"
    push_to_hub: bool = False
    token: str | None = None
    is_main_process: bool = True
    state_dict: Any = None
    save_function: Callable[..., Any] | None = None
    max_shard_size: int | str = "5GB"
    safe_serialization: bool = True
    variant: str | None = None
    save_peft_format: bool = True
    tags: Any = None
    temporary_location: str = _BUFFERS
    maximum_memory_usage: float = 0.75
    datasets: Any = None
    calibration_dataset: Any = None
    num_calibration_samples: int = 512
    max_seq_length: int | None = 2048
    private: bool | None = None
    commit_message: str | None = None


@dataclass(frozen=True, slots=True)
class PushMergedArguments:
    """What push_to_hub_merged takes."""

    repo_id: str
    tokenizer: Any = None
    save_method: str = "merged_16bit"
    use_temp_dir: bool | None = None
    commit_message: str | None = None
    private: bool | None = None
    token: str | None = None
    max_shard_size: int | str = "5GB"
    create_pr: bool = False
    safe_serialization: bool = True
    revision: str | None = None
    commit_description: str | None = None
    tags: Any = None
    temporary_location: str = _BUFFERS
    maximum_memory_usage: float = 0.75
    datasets: Any = None


@dataclass(frozen=True, slots=True)
class GgufArguments:
    """What save_pretrained_gguf takes."""

    save_directory: str
    tokenizer: Any = None
    quantization_method: Any = "fast_quantized"
    first_conversion: str | None = None
    push_to_hub: bool = False
    token: str | None = None
    private: bool | None = None
    is_main_process: bool = True
    state_dict: Any = None
    save_function: Callable[..., Any] | None = None
    max_shard_size: int | str = "5GB"
    safe_serialization: bool = True
    variant: str | None = None
    save_peft_format: bool = True
    tags: Any = None
    temporary_location: str = _BUFFERS
    maximum_memory_usage: float = 0.85
    imatrix_file: Any = None
    save_method: str | None = None
    merge_is_disposable: bool = True


@dataclass(frozen=True, slots=True)
class PushGgufArguments:
    """What push_to_hub_gguf takes."""

    repo_id: str
    tokenizer: Any = None
    quantization_method: Any = "fast_quantized"
    first_conversion: str | None = None
    use_temp_dir: bool | None = None
    commit_message: str | None = None
    private: bool | None = None
    token: str | None = None
    max_shard_size: int | str = "5GB"
    create_pr: bool = False
    safe_serialization: bool = True
    revision: str | None = None
    commit_description: str | None = None
    tags: Any = None
    temporary_location: str = _BUFFERS
    maximum_memory_usage: float = 0.85
    datasets: Any = None
    imatrix_file: Any = None
    save_method: str | None = None


@dataclass(frozen=True, slots=True)
class GgmlArguments:
    """What save_pretrained_ggml takes."""

    save_directory: str
    tokenizer: Any = None
    outtype: str = "f16"


@dataclass(frozen=True, slots=True)
class PushGgmlArguments:
    """What push_to_hub_ggml takes."""

    repo_id: str
    tokenizer: Any = None
    outtype: str = "f16"
    private: bool | None = None
    token: str | None = None
    commit_message: str | None = None


_ONE_AT_A_TIME = "tensors are merged and written one at a time"
IGNORED = {
    "temporary_location": "what is written for a while lies beside the result",
    "maximum_memory_usage": _ONE_AT_A_TIME,
    "max_seq_length": "no rows are needed to merge",
    "num_calibration_samples": "no form that is written here is calibrated",
    "first_conversion": "the 16-bit file in between has the number format of the model",
    "save_peft_format": "adapters are always written as peft reads them",
    "merge_is_disposable": "the merged folder stays; delete it when it is not needed",
    "use_temp_dir": "what is uploaded is written to a folder that is removed afterwards",
    "datasets": "the card names what the model was made from",
    "tags": "the card has tags of its own",
    "save_function": "safetensors writes the weights",
    "outtype": "adapters are written as float32, which loses nothing",
    "commit_description": "the commit has its message",
}
"""Parameter -> why it changes nothing."""
REFUSED = {
    "safe_serialization": "weights are written as safetensors only, which every current library reads",
    "state_dict": "the weights of the model itself are written",
    "variant": "files have their usual names",
    "calibration_dataset": "no form that is written here is calibrated; take a GGUF quantization",
    "create_pr": "files are uploaded to a branch; name one with revision",
}
"""Parameter -> why it cannot be had, and what to do."""

# ---- methods

_METHODS = {
    "lora": "lora",
    "merged_16bit": "merged_16bit",
    "merged_4bit": "merged_4bit",
    "merged_4bit_forced": "merged_4bit",
    "forced_merged_4bit": "merged_4bit",
}
_OUT_OF_REACH = (
    "mxfp4", "fp8", "fp8_static", "fp8_block", "int8", "w8a8", "w8a16", "w4a16", "int4", "w4a16_asym", "w4a8", "w4afp8",
    "mxfp8", "mxfp4a16", "nvfp4", "nvfp4a16", "torchao_fp8", "torchao_int8",
)  # fmt: skip
"""Forms of vLLM and torchao."""
_INSTEAD = (
    "lora (the adapter), merged_16bit (an ordinary model folder) and merged_4bit (the same in bitsandbytes' NF4) work; "
    "fewer bits for llama.cpp come from save_pretrained_gguf"
)


def method_of(asked: str) -> str:
    """Return lora, merged_16bit or merged_4bit. Case, blanks and hyphens do not matter.

    Raises ArgumentError that names those for another method.
    """
    name = "_".join(str(asked).lower().replace("-", " ").replace("_", " ").split())
    if name in _METHODS:
        if name == "merged_4bit":
            say_once("merged_4bit rounds the merged weights to 4 bits; merged_16bit keeps what was learned exactly")
        return _METHODS[name]
    if name in _OUT_OF_REACH:
        raise ArgumentError(f"save_method {asked!r} is not part of this version: {_INSTEAD}")
    raise ArgumentError(f"save_method {printable(asked)} is unknown{did_you_mean(name, list(_METHODS))}: {_INSTEAD}")


def gigabytes(size: float | str) -> float:
    """Return a size such as "5GB" or "200MB" in gigabytes; numbers are bytes.

    >>> gigabytes("200MB"), gigabytes(5_000_000_000)
    (0.2, 5.0)
    """
    text = str(size).strip().upper()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), None)
    try:
        number = float(text.removesuffix(unit or "")) * (_UNITS[unit] if unit else 1)
    except ValueError as error:
        raise ArgumentError(f"max_shard_size {size!r} is no size; write a number of bytes, or 5GB") from error
    return number / 1e9


_UNITS = {"GIB": 2**30, "MIB": 2**20, "KIB": 2**10, "GB": 1e9, "MB": 1e6, "KB": 1e3}

# ---- quantizations

_ALIASES = {
    "not_quantized": "f16",
    "fast_quantized": "q8_0",
    "none": "q8_0",
    "quantized": "q4_k_m",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
}
_REPLACED = {"q2_k_l": "q2_k", "q3_k_xs": "q3_k_s"}
"""Forms that llama.cpp's current quantizer has no longer -> the nearest that it has."""
FULL_PRECISION = ("f32", "f16", "bf16")


def forms_of(asked: Any) -> tuple[str, ...]:
    """Return forms of GGUF files for one name or several; every form once. Raises ArgumentError for an unknown name."""
    names = asked if isinstance(asked, (list, tuple)) else [asked]
    if not names:
        raise ArgumentError("quantization_method names nothing; one of: " + ", ".join(FORMS))
    return tuple(dict.fromkeys(_form(name) for name in names))


def _form(asked: Any) -> str:
    name = str(asked).strip().lower().replace("-", "_")
    name = _ALIASES.get(name, name)
    if name in _REPLACED:
        say_once(f"{name} is not made any more; {_REPLACED[name]} is taken")
        return _REPLACED[name]
    if name not in FORMS:
        known = [*FORMS, *_ALIASES]
        raise ArgumentError(
            f"quantization_method {printable(asked)} is unknown{did_you_mean(name, known) or '.'} There are: "
            f"{', '.join(known)}",
            code="config_unknown_name",
        )
    return name


def matrix_of(asked: Any) -> str | None:
    """Return the file of importances. Raises ArgumentError for True, which would fetch one."""
    if asked is True:
        raise ArgumentError(
            "imatrix_file=True would fetch a file of importances, and nothing is fetched here; make one with "
            "llama-imatrix and give its path"
        )
    return str(asked) if asked else None
