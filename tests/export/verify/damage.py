"""GGUF files that are wrong in one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.export.verify.report import Report

Change = Callable[[dict[str, np.ndarray]], None]


def damaged(
    file: Path, out: Path, *, values: Mapping[str, Any] | None = None, change: Change | None = None, arch: str = ""
) -> Path:
    """Write `file` again, by the gguf package: `values` replace others, None leaves one out; `change` gets the tensors."""
    import gguf
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(file)
    values = values or {}
    architecture = arch or str(reader.fields["general.architecture"].contents())
    writer = GGUFWriter(out, architecture)
    for key, entry in reader.fields.items():
        value = values.get(key, entry.contents())
        if key.startswith("GGUF.") or key == "general.architecture" or value is None:
            continue
        if entry.types[0] == GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, entry.types[0])
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    types = {t.name: t.tensor_type for t in reader.tensors}
    if change is not None:
        change(tensors)
    for name, data in tensors.items():
        kind = types.get(name, gguf.GGMLQuantizationType.F32)
        plain = kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        writer.add_tensor(name, data, raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def red(report: Report) -> set[str]:
    """Return the names of the checks that failed."""
    return {check.name for check in report.checks if check.passed is False}
