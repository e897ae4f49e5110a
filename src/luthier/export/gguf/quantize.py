"""Forms that llama.cpp's own quantizer makes of an f16 or bf16 file, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from luthier.core.errors import ConfigError, DependencyError, ModelError, RunError
from luthier.core.log import logger
from luthier.core.paths import replacing, sync_folder
from luthier.export.gguf.forms import Form, form_of

_CHILD = """
import sys
import cyllama.llama.llama_cpp as llama
settings = llama.LlamaModelQuantizeParams()
settings.ftype, settings.nthread = int(sys.argv[3]), int(sys.argv[4])
try:
    llama.model_quantize(sys.argv[1], sys.argv[2], settings)
except RuntimeError:
    sys.exit(1)  # llama.cpp has said why
"""


@dataclass(frozen=True, slots=True)
class Quantized:
    """What became of a file."""

    path: Path
    fell_back: dict[str, str]
    """Tensors whose rows the form's blocks do not divide, and what llama.cpp stored them as instead."""


def quantize_file(src: Path, out: Path, form: str, *, imatrix: Path | None = None, threads: int = 1) -> Quantized:
    """Make a file of `form` from `src`, an f32, f16 or bf16 file; whole or not at all.

    Raises ConfigError for a form that is unknown, not made there or not possible without an importance matrix,
    DependencyError when there is no quantizer, ModelError when `src` is no GGUF file and RunError when the quantizer
    fails, a crash included.
    """
    made = form_of(form)
    if made.maker != "llama.cpp":
        raise ConfigError(f"{made.name} is written by write_gguf, without llama.cpp's quantizer")
    if made.needs_matrix and imatrix is None:
        raise ConfigError(f"{made.name} is made with an importance matrix only (imatrix); q2_k and larger need none")
    if imatrix is not None and not imatrix.is_file():
        raise ConfigError(f"there is no importance matrix at {imatrix}")
    count = len(_tensors(src))
    with replacing(out) as temporary:
        _run(_command(src, temporary, made, imatrix, threads), made)
        tensors = _tensors(temporary)
        if len(tensors) != count:
            raise RunError(f"the quantizer wrote {len(tensors)} of {count} tensors; nothing was kept")
        _sync(temporary)
    sync_folder(out.parent)
    fell_back = {name: kind for name, (width, kind) in tensors.items() if _fell_back(width, kind, made)}
    if fell_back:
        logger.warning(
            "%d of %d tensors have rows that %s cannot divide into blocks: %s", len(fell_back), count, made.name,
            ", ".join(f"{name} is {kind}" for name, kind in list(fell_back.items())[:3]),
        )  # fmt: skip
    return Quantized(out, fell_back)


def _command(src: Path, out: Path, form: Form, imatrix: Path | None, threads: int) -> list[str]:
    """Return what runs the quantizer: the program where a matrix is given, else cyllama's if it is installed."""
    program = shutil.which("llama-quantize")
    if imatrix is None and find_spec("cyllama") is not None:
        return [sys.executable, "-c", _CHILD, str(src), str(out), str(form.file_type), str(threads)]
    if program is not None:
        matrix = [] if imatrix is None else ["--imatrix", str(imatrix)]
        return [program, *matrix, str(src), str(out), form.name.upper(), str(threads)]
    if imatrix is not None:
        raise DependencyError(
            "an importance matrix is read by llama.cpp's llama-quantize, which is not on the PATH; "
            "put it there, or leave imatrix out"
        )
    raise DependencyError(
        f"{form.name} is made by llama.cpp's quantizer: pip install 'luthier[gguf]' (cyllama), "
        "or put llama.cpp's llama-quantize on the PATH"
    )


def _run(command: list[str], form: Form) -> None:
    """Run a quantizer; whatever happens to it happens to a process of its own."""
    # Its backtrace starts a debugger, which takes minutes.
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env={**os.environ, "GGML_NO_BACKTRACE": "1"}
    )
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-3:]
        how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise RunError(
            f"llama.cpp's quantizer {how} on {form.name}; nothing was kept. Its last words: {' / '.join(said)}"
        )


def _tensors(path: Path) -> dict[str, tuple[int, str]]:
    """Return width and kind of every tensor of a file."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{path} cannot be read as a GGUF file: {error}", code="model_damaged") from error
    return {tensor.name: (int(tensor.shape[0]), tensor.tensor_type.name.lower()) for tensor in reader.tensors}


def _fell_back(width: int, kind: str, form: Form) -> bool:
    """Whether a tensor could not be what the form wants; vectors and norms are f32 in every form."""
    return width % form.block != 0 and kind != "f32"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
