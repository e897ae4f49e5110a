"""What this machine has, and what keeps something from working."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

Check = tuple[str, str, str, str]
"""level (good, note, fault), what, found, remedy."""

REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "gguf",
    "pydantic",
    "fastapi",
    "llguidance",
)
OPTIONAL = {
    "cyllama": "pip install 'luthier[gguf]' for K-quants and for running GGUF files after an export",
    "lm_eval": "pip install 'luthier[harness]' for the tasks of lm-evaluation-harness",
    "sacrebleu": "pip install 'luthier[evaluate]' for BLEU, ROUGE and chrF",
    "tensorboard": "pip install 'luthier[tensorboard]'",
    "triton": "comes with torch on Linux with a GPU",
    "xllamacpp": "pip install 'luthier[gguf]' for running GGUF files after an export",
}
SPARE_DISK_BYTES = 2_000_000_000


def findings() -> list[Check]:
    """Return every check, worst last."""
    import luthier

    checks: list[Check] = [
        ("good", "luthier", luthier.__version__, ""),
        ("good", "python", f"{platform.python_version()} ({sys.executable})", ""),
        *(_package(name) for name in REQUIRED),
        *_optional(),
        *_processor(),
        _gpu(),
        _disk(),
        *_models(),
        *_environment(),
    ]
    order = ("good", "note", "fault")
    return sorted(checks, key=lambda check: order.index(check[0]))


def _package(name: str) -> Check:
    try:
        return "good", name, version(name), ""
    except PackageNotFoundError:
        return "fault", name, "not installed", f"pip install {name}"


def _optional() -> list[Check]:
    return [
        ("good", name, "usable", "") if find_spec(name) else ("note", name, "not installed", remedy)
        for name, remedy in OPTIONAL.items()
    ]


def _processor() -> list[Check]:
    import psutil
    import torch

    from luthier.kernels.cpu import has_fast_bfloat16, processor_name

    memory = psutil.virtual_memory()
    dtype = "bfloat16" if has_fast_bfloat16() else "float32"
    return [
        ("good", "processor", processor_name(), ""),
        ("good", "dtype on it", dtype, ""),
        (
            "good",
            "torch built for",
            f"{torch.backends.cpu.get_cpu_capability()}, CUDA {torch.version.cuda or 'none'}",
            "",
        ),
        ("good", "memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} free", ""),
        _kernels(),
    ]


def _kernels() -> Check:
    from luthier.kernels import native
    from luthier.kernels.op import KERNELS

    if native.obstacle() is None and not native.is_built():
        return (
            "note",
            "kernels",
            "C++ is not compiled yet",
            "luthier doctor --build; or it is done at the first training",
        )
    chosen = ", ".join(f"{name}: {op.choose()[0]}" for name, op in KERNELS.items())
    reason = native.unusable()
    return ("note", "kernels", chosen, reason) if reason else ("good", "kernels", chosen, "")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        return "good", "GPU", torch.cuda.get_device_name(), ""
    return "note", "GPU", "none that torch can use", "training runs on the processor"


def _disk() -> Check:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return "fault", "disk", f"{folder} is not writable", "work in a folder that you may write to"
    if free < SPARE_DISK_BYTES:
        return "fault", "disk", f"{free / 1e9:.1f} GB free in {folder}", "free some space"
    return "good", "disk", f"{free / 1e9:.0f} GB free in {folder}", ""


def _models() -> list[Check]:
    from luthier.models.aliases import ALIASES, installed_file, where

    return [
        (
            "good" if installed_file(alias) else "note",
            f"model {name}",
            where(name),
            "" if installed_file(alias) else alias.install,
        )
        for name, alias in ALIASES.items()
    ]


def _environment() -> list[Check]:
    names = ("HF_HUB_OFFLINE", "HF_HOME", "LUTHIER_CACHE", "OMP_NUM_THREADS", "https_proxy")
    return [("note", name, os.environ[name], "set in the environment") for name in names if name in os.environ]
