"""Weights on disk, read one tensor at a time; GPTQ's and AWQ's whole numbers are unpacked while they are read.

Shapes: I inputs, O outputs, G groups of inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Place in a packed number -> column, in the layout that AWQ calls gemm."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is read when it is indexed with `...`."""

    read: Callable[[], Tensor]

    def __getitem__(self, index: object) -> Tensor:
        return self.read()


def open_weights(base: str, *, revision: str, allow_pickle: bool) -> dict[str, Stored]:
    """Return the tensors of a model folder or hub name by name, unread. Raises OSError when there are none."""
    found: dict[str, Stored] = {}
    for file in weight_files(base, revision=revision, allow_pickle=allow_pickle):
        found |= _safetensors(file) if file.suffix == ".safetensors" else _pickle(file)
    return found


def weight_files(base: str, *, revision: str, allow_pickle: bool) -> list[Path]:
    """Return the files that hold the weights, fetched where they are on a hub."""
    from transformers.utils.hub import cached_file

    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    for name in ("model.safetensors", "pytorch_model.bin") if allow_pickle else ("model.safetensors",):
        index = cached_file(base, f"{name}.index.json", **options)
        if index is not None:
            shards = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
            return [Path(str(cached_file(base, shard, revision=revision))) for shard in shards]
        whole = cached_file(base, name, **options)
        if whole is not None:
            return [Path(whole)]
    raise OSError(f"{base} has no model.safetensors")


def _safetensors(file: Path) -> dict[str, Stored]:
    from safetensors import safe_open

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            # Opened for one tensor: an open file keeps every page in memory that was read from it.
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(name)

        return read

    with safe_open(file, framework="pt") as tensors:
        return {name: Stored(reader(name)) for name in tensors.keys()}  # noqa: SIM118  no mapping


def _pickle(file: Path) -> dict[str, Stored]:
    tensors = torch.load(file, mmap=True, weights_only=True, map_location="cpu")
    return {name: Stored(lambda tensor=tensor: tensor) for name, tensor in tensors.items()}


# ---- whole numbers


def unpack(weights: Mapping[str, Stored], facts: dict[str, Any]) -> dict[str, Stored]:
    """Return ordinary weights for those of GPTQ or AWQ; `facts` is quantization_config of config.json.

    Raises ModelError for a layout that is not known.
    """
    how = _LAYOUTS[str(facts["quant_method"])](facts)
    found = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[2] not in _PARTS}
    for name in weights:
        path, _, part = name.rpartition(".")
        if part == "qweight":
            parts = {each: weights[f"{path}.{each}"] for each in _PARTS if f"{path}.{each}" in weights}
            if missing := {"qzeros", "scales"} - parts.keys():
                raise ModelError(f"{path} has no {min(missing)}; download the model again", code="model_damaged")
            found[f"{path}.weight"] = Stored(lambda parts=parts: how({k: stored[...] for k, stored in parts.items()}))
    return found


def stored_form(facts: Any) -> dict[str, Any] | None:
    """Return quantization_config of a transformers config that we unpack, or None."""
    declared = getattr(facts, "quantization_config", None)
    if declared is None:
        return None
    found = declared if isinstance(declared, dict) else declared.to_dict()
    return found if _method(found) in _LAYOUTS else None


def other_form(facts: Any) -> str | None:
    """Return the name of a quantized form that transformers itself must load, or None."""
    declared = getattr(facts, "quantization_config", None)
    if declared is None or stored_form(facts) is not None:
        return None
    return _method(declared if isinstance(declared, dict) else declared.to_dict())


def _method(facts: dict[str, Any]) -> str:
    method = facts.get("quant_method")
    return str(getattr(method, "value", method))


_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def _gptq(facts: dict[str, Any]) -> Callable[[dict[str, Tensor]], Tensor]:
    bits, form = int(facts.get("bits", 4)), str(facts.get("checkpoint_format") or "gptq")
    _check("GPTQ", bits, (2, 4, 8), form, ("gptq", "gptq_v2"))
    if facts.get("dynamic"):
        raise _unknown("GPTQ", "layers of different widths (dynamic)")
    # The first version of the format stores zero points less one.
    offset = 1 if form == "gptq" else 0

    def read(parts: dict[str, Tensor]) -> Tensor:
        codes_IO = _spread(parts["qweight"].t(), bits).t()
        zeros_GO = (_spread(parts["qzeros"], bits) + offset) & (2**bits - 1)
        group_I = parts.get("g_idx")
        return _dense(codes_IO, zeros_GO, parts["scales"], group_I, facts)

    return read


def _awq(facts: dict[str, Any]) -> Callable[[dict[str, Tensor]], Tensor]:
    bits, form = int(facts.get("bits", facts.get("w_bit", 4))), str(facts.get("version", "gemm")).lower()
    _check("AWQ", bits, (4,), form, ("gemm",))

    def read(parts: dict[str, Tensor]) -> Tensor:
        codes_IO, zeros_GO = (_reorder(_spread(parts[name], bits)) for name in ("qweight", "qzeros"))
        return _dense(codes_IO, zeros_GO, parts["scales"], None, facts)

    return read


_LAYOUTS = {"gptq": _gptq, "awq": _awq}


def _spread(packed: Tensor, bits: int) -> Tensor:
    """Return the whole numbers in each row of 32-bit numbers, the lowest bits first."""
    shift = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed.to(torch.int32)[..., None] >> shift) & (2**bits - 1)).flatten(-2)


def _reorder(codes: Tensor) -> Tensor:
    places = torch.tensor(AWQ_ORDER).argsort()
    return codes.unflatten(-1, (-1, len(AWQ_ORDER)))[..., places].flatten(-2)


def _dense(codes_IO: Tensor, zeros_GO: Tensor, scale_GO: Tensor, group_I: Tensor | None, facts: Any) -> Tensor:
    """Return (code - zero) * scale as a weight [O, I] in float32."""
    inputs, groups = len(codes_IO), len(scale_GO)
    size = int(facts.get("group_size", facts.get("q_group_size", -1)))
    if group_I is None:
        group_I = torch.arange(inputs) // (size if size > 0 else inputs)
    if int(group_I.min()) < 0 or int(group_I.max()) >= groups:
        raise ModelError(
            f"the weights name {int(group_I.max()) + 1} groups of inputs, but there are scales for {groups}; "
            "download the model again",
            code="model_damaged",
        )
    outputs = scale_GO.shape[1]
    whole_IO = codes_IO[:, :outputs] - zeros_GO[group_I.long(), :outputs]
    return (whole_IO.float() * scale_GO.float()[group_I.long()]).t().contiguous()


def _check(name: str, bits: int, known_bits: tuple[int, ...], form: str, known_forms: tuple[str, ...]) -> None:
    if bits not in known_bits:
        raise _unknown(name, f"{bits} bits")
    if form not in known_forms:
        raise _unknown(name, f"the layout {form!r}")


def _unknown(name: str, what: str) -> ModelError:
    return ModelError(
        f"this {name} model has {what}, which luthier cannot read; take the unquantized model and set "
        "quantization: nf4 or int8",
        code="model_quantization",
    )
