"""A frozen linear layer of whole numbers: 8-bit weights and 8-bit activations in groups of 64 inputs.

Symmetric quantization as in the Q8_0 format of GGUF, with groups of 64: code = round(127 x / max |x| of the group).
Activations are quantized at each call (dynamic; LLM.int8(), arXiv:2208.07339, section 2.1, with groups for rows).
Shapes: T rows, I inputs, O outputs, G groups, K inputs padded to whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu, native, panels
from luthier.kernels.op import Op, add

GROUP = 64
AT_A_TIME = 2**20
"""Numbers of a weight that are quantized together."""


def quantize_groups(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes [T, K] (int8, -127 to 127) and scales [T, G] (float32) with x close to code * scale.

    A group with a number that is not finite gets the scale NaN.
    """
    x_TGC = F.pad(x_TI.detach().float(), (0, -x_TI.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    peak_TG = x_TGC.abs().amax(2)
    peak_TG = torch.where(peak_TG.isfinite(), peak_TG, torch.nan)
    codes_TGC = (x_TGC * torch.where(peak_TG > 0, 127 / peak_TG, 0)[..., None]).round_().nan_to_num_(0)
    return codes_TGC.flatten(1).to(torch.int8), peak_TG / 127


@dataclass(slots=True, eq=False)
class Int8Weight:
    """A matrix [O, I] in 8 bits: either codes and scales, or the form that our C++ multiplies; never both."""

    shape: tuple[int, int]
    codes_OK: Tensor | None
    scale_OG: Tensor | None
    packed: Any = None

    @classmethod
    def of(cls, weight_OI: Tensor) -> Int8Weight:
        """Quantize a dense matrix."""
        rows = weight_OI.detach().split(max(1, AT_A_TIME // max(1, weight_OI.shape[1])))
        parts = zip(*(quantize_groups(each) for each in rows), strict=True)
        return cls((weight_OI.shape[0], weight_OI.shape[1]), *(torch.cat(each) for each in parts))

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        if self.packed is not None:
            return self.packed.num_bytes
        return sum(part.nbytes for part in self._parts())

    def parts(self) -> dict[str, Tensor]:
        """Return codes and scales by name; `replace(weight, **parts)` takes others of the same shapes.

        Out of the packed form codes come exactly, scales to the last bit of their numbers.
        """
        whole = (self.codes_OK, self.scale_OG) if self.packed is None else self._unpacked()
        return dict(zip(("codes_OK", "scale_OG"), whole, strict=True))  # pyright: ignore[reportReturnType]

    def _unpacked(self) -> tuple[Tensor, Tensor]:
        # Each group holds a code of 127 or -127, so that quantizing again finds the same scale.
        return quantize_groups(self.rows(0, self.shape[0], torch.float32))

    def __deepcopy__(self, memo: object) -> Int8Weight:
        return Int8Weight(self.shape, **{name: part.clone() for name, part in self.parts().items()})

    def pack(self) -> Int8Weight:
        """Move the codes into the form of our C++, once."""
        if self.packed is None:
            codes_OK, scale_OG = self._parts()
            self.packed = native.module().packed_int8(codes_OK.contiguous(), scale_OG.contiguous(), self.shape[1])
            self.codes_OK = self.scale_OG = None
        return self

    def to(self, device: torch.device | str) -> Int8Weight:
        """Return the codes on another device."""
        return Int8Weight(self.shape, *(part.to(device) for part in self._parts()))

    def rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Return dense rows [last - first, I]."""
        if self.packed is not None and dtype in (torch.float32, torch.bfloat16):
            return native.module().int8_rows(self.packed, first, last, dtype == torch.bfloat16)
        codes_OK, scale_OG = self._parts()
        dense = codes_OK[first:last].unflatten(1, (-1, GROUP)) * scale_OG[first:last, :, None]
        return dense.flatten(1)[:, : self.shape[1]].to(dtype)

    def _parts(self) -> tuple[Tensor, Tensor]:
        if self.codes_OK is None or self.scale_OG is None:
            raise ValueError("this 8-bit weight is packed for the processor; keep a copy of the unpacked one")
        return self.codes_OK, self.scale_OG


def int8_linear_reference(x: Tensor, weight: Int8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Return x W' + bias with both quantized: whole products within a group, summed over groups in float32.

    The gradient of `x` is that of x W' with the dequantized weight, as if rounding were not there.
    """
    (codes_OK, scale_OG), x_TI = weight._parts(), x.reshape(-1, x.shape[-1])
    x_codes_TK, x_scale_TG = quantize_groups(x_TI)
    # Sums of 64 products stay under 2**24, so float32 holds these whole numbers exactly.
    left, right = (codes.float().unflatten(1, (-1, GROUP)) for codes in (x_codes_TK, codes_OK))
    whole_GTO = left.transpose(0, 1) @ right.permute(1, 2, 0)
    scale_GTO = x_scale_TG.t()[:, :, None] * scale_OG.t()[:, None, :]
    y_TO = (whole_GTO * scale_GTO).sum(0).to(x.dtype)
    straight_TO = F.linear(x_TI, weight.rows(0, weight.shape[0], x.dtype)).nan_to_num(0, 0, 0)
    y_TO = y_TO + (straight_TO - straight_TO.detach())
    return (y_TO if bias_O is None else y_TO + bias_O.to(x.dtype)).view(*x.shape[:-1], weight.shape[0])


def _sample(inputs: int, outputs: int, *rows: int, bias: bool = False, strange: bool = False):
    def make(dtype: torch.dtype) -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(inputs)
        x = torch.randn(inputs, *rows, generator=generator).to(dtype).movedim(0, -1)
        weight_OI = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        if strange:
            weight_OI[0] = 0
            x[..., :GROUP] = 0
        bias_O = torch.randn(outputs, generator=generator).to(dtype) if bias else None
        return x, Int8Weight.of(weight_OI), bias_O

    return make


INT8_LINEAR = add(
    Op(
        "int8_linear",
        int8_linear_reference,
        samples=[
            _sample(8, 4, 1),
            _sample(70, 37, 3, 5, bias=True),
            _sample(64, 16, 0),
            _sample(192, 130, 67, bias=True, strange=True),
            _sample(1000, 96, 13),
        ],
    )
)


@INT8_LINEAR.backend("native", native.unusable, device="cpu")
def int8_linear_native(x: Tensor, weight: Int8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Multiply whole numbers in our own C++. The weight moves into the form that it multiplies."""
    if not native.takes(x):
        return int8_linear(x, weight, bias_O)
    return panels.frozen_linear(x, weight.pack(), bias_O, lambda x_TI: weight.packed(x_TI))


@INT8_LINEAR.backend("triton", gpu.unusable, device="cuda")
def int8_linear_triton(x: Tensor, weight: Int8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Multiply whole numbers in Triton."""
    from luthier.kernels.triton.product import int8_matmul

    codes_OK, scale_OG = weight._parts()
    return panels.frozen_linear(
        x, weight, bias_O, lambda x_TI: int8_matmul(*quantize_groups(x_TI), codes_OK, scale_OG, x_TI.dtype)
    )


@INT8_LINEAR.backend("torch")
def int8_linear(x: Tensor, weight: Int8Weight, bias_O: Tensor | None = None) -> Tensor:
    """Multiply what the codes stand for, in float32."""

    def forward(x_TI: Tensor) -> Tensor:
        codes_TK, scale_TG = quantize_groups(x_TI)
        seen_TI = (codes_TK.unflatten(1, (-1, GROUP)) * scale_TG[..., None]).flatten(1)[:, : x_TI.shape[1]]
        return panels.product(seen_TI, weight).to(x_TI.dtype)

    return panels.frozen_linear(x, weight, bias_O, forward)
