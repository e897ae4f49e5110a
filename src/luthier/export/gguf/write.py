"""Write a model as one GGUF file, one tensor at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, RunError
from luthier.core.paths import replacing, sync_folder
from luthier.core.progress import following
from luthier.export.gguf.architectures import ARCHITECTURES
from luthier.export.gguf.forms import encode, form_of, stored_form
from luthier.export.gguf.metadata import model_metadata
from luthier.export.gguf.plan import Planned, planned
from luthier.export.gguf.vocabulary import vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFWriter

    from luthier.export.gguf.rope import Metadata
    from luthier.export.source import Source


def write_gguf(source: Source, out: Path, *, form: str) -> Path:
    """Write `source` to `out` in a form that is made here (f32, f16, bf16, q8_0, q5_0, q4_0); whole or not at all.

    Raises ModelError where there is no exact mapping, ConfigError for a form that llama.cpp makes, and RunError when
    the disk is full.
    """
    made = form_of(form)
    if made.maker != "here":
        raise ConfigError(f"{made.name} is made of an f16 or bf16 file by quantize_file; write_gguf cannot make it")
    tensors = planned(source)
    said = metadata(source, made.name, tensors)
    write_file(out, ARCHITECTURES[source.facts.model_type].name, said, tensors, made.name)
    return out


def metadata(source: Source, form: str, tensors: list[Planned]) -> Metadata:
    """Return every key of the file but `general.architecture`, which comes first."""
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    return {
        "general.type": "model",
        "general.name": source.name,
        "general.file_type": form_of(form).file_type,
        "general.quantization_version": 2,
        **model_metadata(source.facts),
        **vocabulary(source.tokenizer, rows, generation=source.generation, facts=source.facts),
    }


def write_file(out: Path, architecture: str, said: Metadata, tensors: list[Planned], form: str) -> None:
    """Write settings and tensors; the file appears under its name when it is whole."""
    import gguf

    try:
        with replacing(out) as temporary:
            writer = gguf.GGUFWriter(None, architecture)
            for key, value in said.items():
                add(writer, key, value)
            for tensor in tensors:
                _announce(writer, tensor, stored_form(tensor.name, tensor.shape, form))
            try:
                _fill(writer, temporary, tensors, form)
            finally:
                writer.close()
        sync_folder(out.parent)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}; nothing was left behind") from error


def _fill(writer: GGUFWriter, path: Path, tensors: list[Planned], form: str) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in following(tensors):
        writer.write_tensor_data(encode(tensor.read(), stored_form(tensor.name, tensor.shape, form)))
    writer.flush()
    for file in writer.fout or []:
        os.fsync(file.fileno())


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add one setting; its Python type says which type it has in the file."""
    from gguf import GGUFValueType

    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        kinds = {
            bool: GGUFValueType.BOOL,
            int: GGUFValueType.UINT32,
            float: GGUFValueType.FLOAT32,
            str: GGUFValueType.STRING,
        }
        writer.add_key_value(key, value, kinds[type(value)])


def _announce(writer: GGUFWriter, tensor: Planned, form: str) -> None:
    """Say name, shape and form, by which the place of every tensor is known before one is read."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[form.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(tensor.shape))
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), count // block * size, raw_dtype=kind)
