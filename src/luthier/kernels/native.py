"""Our own C++ for processors: compiled once for this processor and this torch, found again in torch's extension cache.

Where there is no compiler, or LUTHIER_NATIVE=off, the torch backends compute the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch

from luthier.core.log import logger, printable
from luthier.kernels.cpu import processor_flags

FOLDER = Path(__file__).with_name("cpp")
_INSTRUCTIONS = {
    "avx512f": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-DCPU_CAPABILITY_AVX512"],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY_AVX2"],
}
"""Flag of the processor -> how to compile for it; the first that the processor has is taken."""
_BESIDE_AVX512 = {"avx512_bf16": "-mavx512bf16", "avx512_vnni": "-mavx512vnni"}
"""Products of narrow numbers, where the processor has them."""


@cache
def unusable() -> str | None:
    """Return why the compiled operations cannot be used here, or None; builds them at the first call."""
    reason = obstacle()
    if reason is not None:
        return reason
    try:
        module()
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        return f"compiling failed: {printable(str(error).strip().splitlines()[0], 200)}"
    return None


def obstacle() -> str | None:
    """Return what keeps the operations from being built or used here, without building them; None if nothing."""
    if os.environ.get("LUTHIER_NATIVE") == "off":
        return "LUTHIER_NATIVE is off"
    if not any(flag in processor_flags() for flag in _INSTRUCTIONS):
        return f"the processor has none of {', '.join(_INSTRUCTIONS)}"
    compiler = os.environ.get("CXX", "c++")
    if not is_built() and shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    return None


@cache
def module() -> Any:
    """Return the compiled operations, built when they are not in the cache. Raises RuntimeError when that fails."""
    library = _library()
    if library.is_file():
        loader = ExtensionFileLoader(library.stem, str(library))
        found = module_from_spec(spec_from_loader(library.stem, loader))  # pyright: ignore[reportArgumentType]
        loader.exec_module(found)
        return found
    logger.info("kernels: compiling C++ for this processor, once; about half a minute")
    return _build(library)


def is_built() -> bool:
    """Tell whether the compiled operations are in the cache."""
    return _library().is_file()


def _build(library: Path) -> Any:
    from torch.utils.cpp_extension import load

    library.parent.mkdir(parents=True, exist_ok=True)
    options = {"extra_cflags": _flags(), "extra_ldflags": _threads(), "build_directory": str(library.parent)}
    return load(library.stem, [str(path) for path in sorted(FOLDER.glob("*.cpp"))], **options)


def _library() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    sources = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir())]
    recipe = "\n".join([*sources, torch.__version__, *_flags()])
    name = f"luthier_fused_{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    return Path(get_default_build_root()) / name / f"{name}.so"


def _flags() -> list[str]:
    here = processor_flags()
    instructions = next((flags for name, flags in _INSTRUCTIONS.items() if name in here), [])
    narrow = [flag for name, flag in _BESIDE_AVX512.items() if "avx512f" in here and name in here]
    return ["-O3", "-fopenmp", *instructions, *narrow]


def _threads() -> list[str]:
    """Link the OpenMP that torch brings: a second one would hold a second pool of threads."""
    folder = Path(torch.__file__).with_name("lib")
    own = next(iter(sorted(folder.glob("libgomp*.so*"))), None)
    return [f"-L{folder}", f"-l:{own.name}", f"-Wl,-rpath,{folder}"] if own else ["-fopenmp"]


def takes(*tensors: torch.Tensor) -> bool:
    """Tell whether the compiled operations take these tensors: on the processor, float32 or bfloat16 alike."""
    kinds = {t.dtype for t in tensors}
    return all(t.device.type == "cpu" for t in tensors) and len(kinds) == 1 and kinds <= {torch.float32, torch.bfloat16}
