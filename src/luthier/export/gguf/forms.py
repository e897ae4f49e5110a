"""Forms of numbers in a GGUF file: what there is, how each is made, how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from luthier.core.errors import ConfigError
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Form:
    """One form."""

    name: str
    maker: Literal["here", "llama.cpp"]
    """Written by this package, or made of an f16 or bf16 file by llama.cpp's quantizer."""
    file_type: int
    """Its number in llama.cpp's files (llama_ftype)."""
    bits: str
    """Bits a weight, in words."""
    block: int = 1
    """Numbers that share a scale: rows are divided into as many."""
    needs_matrix: bool = False
    """Whether it cannot be made without an importance matrix."""


def _table(*forms: Form) -> dict[str, Form]:
    return {form.name: form for form in forms}


FORMS: dict[str, Form] = _table(
    Form("f32", "here", 0, "32; every digit"),
    Form("f16", "here", 1, "16; large numbers overflow"),
    Form("bf16", "here", 32, "16; the range of f32"),
    Form("q8_0", "here", 7, "8.5", 32),
    Form("q5_0", "here", 8, "5.5", 32),
    Form("q4_0", "here", 2, "4.5", 32),
    Form("q6_k", "llama.cpp", 18, "about 6.6", 256),
    Form("q5_k_m", "llama.cpp", 17, "about 5.7", 256),
    Form("q5_k_s", "llama.cpp", 16, "about 5.5", 256),
    Form("q4_k_m", "llama.cpp", 15, "about 4.9", 256),
    Form("q4_k_s", "llama.cpp", 14, "about 4.6", 256),
    Form("q3_k_l", "llama.cpp", 13, "about 4.3", 256),
    Form("q3_k_m", "llama.cpp", 12, "about 3.9", 256),
    Form("q3_k_s", "llama.cpp", 11, "about 3.5", 256),
    Form("q2_k", "llama.cpp", 10, "about 3.0", 256),
    Form("q2_k_s", "llama.cpp", 21, "about 2.7", 256, needs_matrix=True),
    Form("q5_1", "llama.cpp", 9, "6", 32),
    Form("q4_1", "llama.cpp", 3, "5", 32),
    Form("iq4_nl", "llama.cpp", 25, "about 4.5", 32),
    Form("iq4_xs", "llama.cpp", 30, "about 4.3", 256),
    Form("iq3_m", "llama.cpp", 27, "about 3.7", 256),
    Form("iq3_s", "llama.cpp", 26, "about 3.4", 256),
    Form("iq3_xs", "llama.cpp", 22, "about 3.3", 256, needs_matrix=True),
    Form("iq3_xxs", "llama.cpp", 23, "about 3.1", 256, needs_matrix=True),
    Form("iq2_m", "llama.cpp", 29, "about 2.7", 256, needs_matrix=True),
    Form("iq2_s", "llama.cpp", 28, "about 2.5", 256, needs_matrix=True),
    Form("iq2_xs", "llama.cpp", 20, "about 2.3", 256, needs_matrix=True),
    Form("iq2_xxs", "llama.cpp", 19, "about 2.1", 256, needs_matrix=True),
    Form("iq1_m", "llama.cpp", 31, "about 1.8", 256, needs_matrix=True),
    Form("iq1_s", "llama.cpp", 24, "about 1.6", 256, needs_matrix=True),
)
"""Every form by name."""


def form_of(name: str) -> Form:
    """Return a form by name, capitals or not. Raises ConfigError with all names when there is none."""
    found = FORMS.get(name.lower())
    if found is None:
        known = list(FORMS)
        raise ConfigError(
            f"unknown form of a GGUF file {name!r}{did_you_mean(name.lower(), known) or '.'} "
            f"It may be one of: {', '.join(known)}",
            code="config_unknown_name",
        )
    return found


def stored_form(name: str, shape: tuple[int, ...], form: str) -> str:
    """Return the form in which one tensor stands in a file of `form`.

    Vectors, norms and what chooses experts stay f32, as in llama.cpp's own files; rows that blocks do not divide, f16.
    """
    if len(shape) < 2 or name.endswith(_KEPT):
        return "f32"
    return "f16" if shape[-1] % FORMS[form].block else form


_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")


def encode(x: Tensor, form: str) -> np.ndarray:
    """Return float32 numbers as bytes of `form`, one row of bytes for a row of numbers; f32 and f16 as themselves."""
    import gguf

    if form == "f32":
        return x.numpy()
    if form == "f16":
        return x.to(torch.float16).numpy()
    if form == "bf16":
        # Rounded by torch: to the nearest, ties to even.
        return x.to(torch.bfloat16).view(torch.uint8).numpy()
    return gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[form.upper()])
