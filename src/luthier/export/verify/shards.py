"""Hold the safetensors files of a folder against the weights that they were made from, and against themselves."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING

import torch

from luthier.core.errors import ModelError
from luthier.core.log import printable
from luthier.core.progress import following
from luthier.export.source import Weight, file_weights
from luthier.export.verify.report import Check
from luthier.models.inspect import check_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INDEX = "model.safetensors.index.json"
_BITS = {torch.bfloat16: (8, 2.0**-133), torch.float16: (11, 2.0**-24)}
"""Number format -> significant bits and smallest number."""


def check_files(folder: Path, name: str = "model") -> tuple[Check, dict[str, Weight]]:
    """See that files are whole and that the index says what is in them; also return the unread weights."""
    limit = "every file whole, every tensor where the index says, sizes as it says"
    files = sorted(folder.glob(f"{name}*.safetensors"))
    if not files:
        return Check("files", False, f"there is no {name}.safetensors", limit), {}
    try:
        for file in files:
            check_safetensors(file)
        weights = file_weights(files)
        wrong = _index_faults(folder, files) if name == "model" else None
    except (ModelError, OSError, ValueError, KeyError) as error:
        return Check("files", False, printable(error, 200).strip("'"), limit), {}
    size = sum(prod(weight.shape) * weight.dtype.itemsize for weight in weights.values())
    numbers = {"files": len(files), "tensors": len(weights), "bytes": size}
    found = wrong or f"{len(files)} files, {len(weights)} tensors, {size / 1e6:.1f} MB"
    return Check("files", wrong is None, found, limit, numbers), weights


def _index_faults(folder: Path, files: Sequence[Path]) -> str | None:
    """Return what the index says wrongly, or None."""
    there = {name: file.name for file in files for name in file_weights([file])}
    if not (folder / INDEX).is_file():
        return None if len(files) == 1 else f"{len(files)} files have no {INDEX}"
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    said = index["weight_map"]
    other = sorted(name for name in said.keys() | there.keys() if said.get(name) != there.get(name))
    if other:
        return f"{INDEX} has {other[0]} in {said.get(other[0])}, it is in {there.get(other[0])}"
    size = sum(prod(weight.shape) * weight.dtype.itemsize for weight in file_weights(files).values())
    total = index.get("metadata", {}).get("total_size", size)
    return None if total == size else f"total_size of {INDEX} is {total}, the tensors have {size} bytes"


def check_weights(
    weights: Mapping[str, Weight], wanted: Mapping[str, Weight], *, optional: Sequence[str] = ()
) -> Check:
    """Compare names, shapes and numbers; `optional`: tied weights, which need not be there twice."""
    limit = "every weight there and nothing else, each number within one rounding of what it was made from"
    names = [name for name in wanted if name in weights]
    faults = {
        "is missing": sorted(wanted.keys() - weights.keys() - set(optional)),
        "belongs to nothing": sorted(weights.keys() - wanted.keys() - set(optional)),
        "has another shape": [name for name in names if weights[name].shape != wanted[name].shape],
    }
    numbers: dict[str, float] = {said.replace(" ", "_"): len(listed) for said, listed in faults.items()}
    first = next((f"{listed[0]} {said}" for said, listed in faults.items() if listed), None)
    if first is not None:
        return Check("weights", False, first, limit, numbers)
    off = {name: _roundings(weights[name].read(), wanted[name].read()) for name in following(names)}
    wrong = [name for name, steps in off.items() if not steps <= 1]
    worst = max(off, key=lambda name: off[name]) if off else ""
    numbers |= {"too_far": len(wrong), "worst_roundings": off.get(worst, 0.0)}
    if wrong:
        found = f"{len(wrong)} of {len(names)} weights are not what they were made from, the first is {wrong[0]}"
        return Check("weights", False, found, limit, numbers)
    return Check(
        "weights", True, f"{len(names)} weights, at most {off.get(worst, 0.0):.2g} roundings off", limit, numbers
    )


def _roundings(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the biggest difference in units of half the last bit; infinity for what is not finite."""
    if found.dtype not in _BITS:
        same = torch.equal(found, wanted.to(found.dtype))
        return 0.0 if same and bool(torch.isfinite(found.float()).all()) else float("inf")
    bits, smallest = _BITS[found.dtype]
    wanted = wanted.float()
    steps = (found.float() - wanted).abs() / (wanted.abs() * 2.0**-bits).clamp_min(smallest / 2)
    return float(steps.nan_to_num(float("inf")).max()) if steps.numel() else 0.0
