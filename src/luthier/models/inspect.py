"""Look at a model folder before any library opens it: what is there, what is damaged, what would run code."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.log import logger
from luthier.core.registry import FAMILIES
from luthier.models.foreign import foreign_of, needs_own_code

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
LARGEST_HEADER_BYTES = 100_000_000
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def check_folder(
    folder: Path,
    *,
    allow_remote_code: bool,
    allow_pickle: bool,
    is_adapter: bool = False,
    has_weights: bool = True,
) -> None:
    """Raise ModelError for a model folder that is incomplete, damaged, or would run or unpickle something."""
    there = sorted(p.name for p in folder.iterdir())
    config = "adapter_config.json" if is_adapter else "config.json"
    if config not in there:
        raise ModelError(
            f"{folder} has no {config}; there are: {', '.join(there[:12]) or 'no files'}", code="model_incomplete"
        )
    if not is_adapter:
        if not any(name in there for name in TOKENIZER_FILES):
            raise ModelError(
                f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy them from the original model",
                code="model_no_tokenizer",
            )
        refuse_multimodal(_json(folder / config), str(folder))
        _check_remote_code(folder, allow_remote_code=allow_remote_code)
    if has_weights:
        _check_weights(folder, there, allow_pickle=allow_pickle)


_SENSES = {
    "vision_config": "pictures",
    "visual": "pictures",
    "img_processor": "pictures",
    "mm_vision_tower": "pictures",
    "audio_config": "sounds",
    "audio_processor": "sounds",
}
"""Key of a config.json -> what the model reads beside text."""


def refuse_multimodal(raw: dict[str, Any], name: str) -> None:
    """Raise ModelError for a model that reads more than text, unless its text half can be taken alone."""
    key = next((key for key in _SENSES if raw.get(key)), None)
    if key is None or raw.get("model_type") in FAMILIES.names() or foreign_of(raw) is not None:
        return
    raise ModelError(
        f"{name} is a model of type {raw.get('model_type')!r} that reads {_SENSES[key]} ({key} in its config.json); "
        "luthier trains text models: take the text model of its family, or one of `luthier models`",
        code="model_multimodal",
    )


def _check_remote_code(folder: Path, *, allow_remote_code: bool) -> None:
    named: set[str] = set()
    why = "its tokenizer is code"
    for path in folder.glob("*.json"):
        if path.stat().st_size >= 5_000_000 or path.name == "tokenizer.json":
            continue
        content = _json(path)
        if path.name == "config.json" and _auto_maps(content):
            reason = needs_own_code(content)
            if reason is None:
                continue  # transformers has the class itself, and takes it
            why = reason
        named |= _auto_maps(content)
    if not named:
        return
    files = "; ".join(code_of(folder)) or "from the hub"
    if allow_remote_code:
        logger.info("code that comes with %s runs: %s", folder, files)
        return
    raise ModelError(
        f"{folder} wants to run its own code ({', '.join(sorted(named))}), because {why}; files: {files}. Read them, "
        "then set allow_remote_code=true on the command line",
        code="model_remote_code",
    )


def code_of(folder: Path) -> list[str]:
    """Return name, size and SHA-256 of each Python file in a model folder."""
    files = sorted(folder.rglob("*.py"))
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return [f"{p.relative_to(folder)} ({p.stat().st_size} bytes, sha256 {sums[p]})" for p in files]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; download it again", code="model_damaged") from error


def _auto_maps(value: Any) -> set[str]:
    """Return every class that an `auto_map` anywhere in a config names, nested configs included."""
    if isinstance(value, dict):
        own = {str(target) for target in dict(value.get("auto_map") or {}).values()}
        return own.union(*(_auto_maps(inner) for inner in value.values()))
    return set().union(*(_auto_maps(inner) for inner in value)) if isinstance(value, list) else set()


def _check_weights(folder: Path, there: list[str], *, allow_pickle: bool) -> None:
    tensors = [name for name in there if name.endswith(".safetensors")]
    pickles = [name for name in there if name.endswith(PICKLES) and "training_args" not in name]
    if not tensors and not pickles:
        raise ModelError(
            f"{folder} has no weights (*.safetensors); there are: {', '.join(there[:12])}", code="model_incomplete"
        )
    if not tensors and not allow_pickle:
        raise ModelError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when loaded; convert them to "
            "safetensors, or set allow_pickle=true to read them with torch's weights-only reader",
            code="model_pickle",
        )
    for name in tensors:
        check_safetensors(folder / name)
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(dict(_json(index).get("weight_map", {})).values())
        missing = sorted(shards - set(there))
        if missing:
            raise ModelError(
                f"{index} names {missing[0]}, which is not in {folder}; download it again", code="model_damaged"
            )


def check_safetensors(path: Path) -> None:
    """Raise ModelError with expected and real bytes when a safetensors file is damaged."""
    real = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if real < 8 or size > min(real - 8, LARGEST_HEADER_BYTES):
            raise ModelError(f"{path} is damaged: its header claims {size} bytes of {real}; download it again",
                             code="model_damaged")  # fmt: skip
        try:
            header = json.loads(file.read(size))
            tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
            ends = [int(facts["data_offsets"][1]) for facts in tensors.values()]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(f"{path} is damaged: its header is no table of tensors; download it again",
                             code="model_damaged") from error  # fmt: skip
    expected = 8 + size + max(ends, default=0)
    if expected != real:
        raise ModelError(
            f"{path} is damaged: {expected} bytes expected, {real} found; download it again", code="model_damaged"
        )
    for name, facts in tensors.items():
        count = 1
        for side in facts["shape"]:
            count *= side
        start, end = facts["data_offsets"]
        width = _BYTES.get(facts["dtype"])
        if width is not None and end - start != count * width:
            raise ModelError(
                f"{path} is damaged: {name} of shape {facts['shape']} has {end - start} bytes", code="model_damaged"
            )
