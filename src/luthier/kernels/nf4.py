"""4-bit weights (QLoRA, arXiv:2305.14314): quantize, dequantize, and a frozen linear layer of such a weight.

Numbers are taken in blocks of 64 in memory order, so that blocks may cross rows. A code is the nearest of 16 levels
of x / max |x| of the block; two codes a byte, the first one in the high half, as in bitsandbytes. The levels are those
of NormalFloat (section 3, appendix E), or of a number of sign, two bits of exponent and one of fraction (FP4), in
bitsandbytes' order of codes. Double quantization keeps the block scales in 8 bits, in blocks of 256 around their mean.
Shapes: T rows, I inputs, O outputs, N blocks, B bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu, native, panels
from luthier.kernels.op import Op, add

BLOCK, SCALE_BLOCK = 64, 256
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4_LEVELS = (
    0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
    0.0, -0.005208333333, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25,
)  # fmt: skip
TABLES = {"nf4": LEVELS, "fp4": FP4_LEVELS}
"""Kind of 4-bit number -> what each code stands for."""
AT_A_TIME = 2**20
"""Numbers that are quantized together."""
FEW_ROWS = {torch.float32: 64, torch.bfloat16: 16}
"""Up to here a product that never makes the dense weight is at least as fast as one of dense panels: measured on two
cores with 576 x 1536 and 2048 x 8192, whose float32 products are slower, so that dense panels pay off later."""
FEW_ROWS_ON_GPU = 16
"""The least rows of a tile that a GPU multiplies."""


@cache
def levels(device: torch.device, kind: str = "nf4") -> Tensor:
    """Return what the 16 codes of a kind stand for."""
    return torch.tensor(TABLES[kind], device=device)


@cache
def _rising(device: torch.device, kind: str) -> tuple[Tensor, Tensor]:
    """Return the levels from the lowest on, and their codes."""
    order = sorted(range(16), key=TABLES[kind].__getitem__)
    return levels(torch.device("cpu"), kind)[order].to(device), torch.tensor(order, device=device, dtype=torch.uint8)


@cache
def scale_levels(device: torch.device) -> Tensor:
    """Return the 256 levels of an 8-bit scale: signed dynamic tree quantization (arXiv:2110.02861, section 1.3)."""
    positive: list[float] = []
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, 2**exponent + 1, device="cpu")
        positive += (10.0 ** (exponent - 6) * ((borders[:-1] + borders[1:]) / 2)).tolist()
    return torch.tensor(sorted([*(-x for x in positive), 0.0, *positive, 1.0]), device=device)


def _quantize(x: Tensor, table: Tensor, block: int, code_of: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the code of the nearest level of `table`, its index without `code_of`, and the scale of each block."""
    count = x.numel()
    x_NC = F.pad(x.flatten(), (0, -count % block)).view(-1, block)
    # Some blocks at a time: what is needed in between is ten times as large as the codes.
    parts = [_quantize_blocks(part_NC.float(), table, code_of) for part_NC in x_NC.split(max(1, AT_A_TIME // block))]
    codes_NC, scale_N = (torch.cat(each) for each in zip(*parts, strict=True))
    return codes_NC.flatten()[:count], scale_N


def _quantize_blocks(x_NC: Tensor, table: Tensor, code_of: Tensor | None) -> tuple[Tensor, Tensor]:
    scale_N = x_NC.abs().amax(1) if x_NC.numel() else x_NC.new_zeros(0)
    unit_NC = x_NC * (1 / scale_N.clamp(min=1e-38))[:, None]
    borders = (table[:-1] + table[1:]) / 2
    rank_NC = torch.bucketize(unit_NC.clamp_(-1, 1), borders, out_int32=True)
    return rank_NC.to(torch.uint8) if code_of is None else code_of[rank_NC], scale_N


@dataclass(frozen=True, slots=True, eq=False)
class Nf4Weight:
    """A matrix in 4 bits."""

    shape: tuple[int, int]
    codes_B: Tensor
    """Two codes a byte."""
    absmax_N: Tensor
    """Scales of the blocks, float32; or their 8-bit codes."""
    outer: Tensor | None = None
    """Scales of blocks of 256 scales, and behind them the mean of all; None where scales are float32."""
    block_size: int = BLOCK
    kind: str = "nf4"
    """Name of the table of levels."""

    @classmethod
    def of(cls, weight_OI: Tensor, *, double: bool = False, block_size: int = BLOCK, kind: str = "nf4") -> Nf4Weight:
        """Quantize a dense matrix; `double` quantizes the scales too (section 3, Double Quantization)."""
        table, code_of = _rising(weight_OI.device, kind)
        codes, absmax_N = _quantize(weight_OI.detach(), table, block_size, code_of)
        codes = F.pad(codes, (0, codes.numel() % 2), value=TABLES[kind].index(0.0))
        shape = weight_OI.shape[0], weight_OI.shape[1]
        weight = cls(shape, codes[::2] << 4 | codes[1::2], absmax_N, block_size=block_size, kind=kind)
        if not double or not absmax_N.numel():
            return weight
        mean = absmax_N.mean()
        inner_N, outer = _quantize(absmax_N - mean, scale_levels(weight_OI.device), SCALE_BLOCK)
        return replace(weight, absmax_N=inner_N, outer=torch.cat([outer, mean[None]]))

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(part.nbytes for part in self.parts().values())

    @property
    def table(self) -> Tensor:
        """What the 16 codes stand for, where the codes are."""
        return levels(self.codes_B.device, self.kind)

    def parts(self) -> dict[str, Tensor]:
        """Return codes and scales by name; `replace(weight, **parts)` takes others of the same shapes."""
        found = {"codes_B": self.codes_B, "absmax_N": self.absmax_N, "outer": self.outer}
        return {name: part for name, part in found.items() if part is not None}

    def to(self, device: torch.device | str) -> Nf4Weight:
        """Return the same weight on another device."""
        outer = None if self.outer is None else self.outer.to(device)
        return replace(self, codes_B=self.codes_B.to(device), absmax_N=self.absmax_N.to(device), outer=outer)

    def scales(self) -> Tensor:
        """Return the scales of the blocks in float32, [N]."""
        if self.outer is None:
            return self.absmax_N
        inner_N = scale_levels(self.absmax_N.device)[self.absmax_N.int()]
        return inner_N * self.outer[:-1].repeat_interleave(SCALE_BLOCK)[: len(inner_N)] + self.outer[-1]

    def rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Return dense rows [last - first, I]."""
        begin, end = first * self.shape[1], last * self.shape[1]
        bytes_B = self.codes_B[begin // 2 : (end + 1) // 2]
        codes = torch.stack([bytes_B >> 4, bytes_B & 15], 1).flatten()[begin % 2 :][: end - begin]
        block_of = torch.arange(begin, end, device=codes.device) // self.block_size
        dense = self.table[codes.int()] * self.scales()[block_of]
        return dense.view(last - first, self.shape[1]).to(dtype)


def dequantize(weight: Nf4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the dense matrix [O, I]: level * scale of its block."""
    return weight.rows(0, weight.shape[0], dtype)


def nf4_linear_reference(x: Tensor, weight: Nf4Weight, bias_O: Tensor | None = None) -> Tensor:
    """Return x W' + bias with the dequantized weight, in the dtype of `x`."""
    return F.linear(x, dequantize(weight, x.dtype), bias_O)


def _sample(
    inputs: int, outputs: int, *rows: int, bias: bool = False, double: bool = False, block_size: int = BLOCK,
    kind: str = "nf4",
):  # fmt: skip
    def make(dtype: torch.dtype) -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(inputs)
        x = torch.randn(inputs, *rows, generator=generator).to(dtype).movedim(0, -1)
        weight_OI = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        bias_O = torch.randn(outputs, generator=generator).to(dtype) if bias else None
        return x, Nf4Weight.of(weight_OI, double=double, block_size=block_size, kind=kind), bias_O

    return make


NF4_LINEAR = add(
    Op(
        "nf4_linear",
        nf4_linear_reference,
        samples=[
            _sample(8, 4, 1),
            _sample(33, 7, 3, 5, bias=True),
            _sample(64, 16, 0, double=True),
            _sample(192, 130, 3, bias=True, double=True),
            _sample(256, 66, 67, bias=True, block_size=128),
            _sample(101, 67, 40, double=True),
            _sample(192, 130, 3, kind="fp4"),
            _sample(101, 67, 40, bias=True, double=True, kind="fp4"),
        ],
    )
)


@dataclass(slots=True)
class _Rows:
    """Rows of a weight, dequantized by our C++ or by Triton, for one pass: scales are made once."""

    weight: Nf4Weight
    backend: str
    _scale_N: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @property
    def scale_N(self) -> Tensor:
        if self._scale_N is None:
            self._scale_N = self.weight.scales()
        return self._scale_N

    def rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight = self.weight
        if self.backend == "triton":
            from luthier.kernels.triton.nf4 import rows

            where = first, last, weight.shape[1]
            return rows(weight.codes_B, self.scale_N, weight.table, weight.block_size, where, dtype)
        parts = weight.codes_B, self.scale_N, weight.table, weight.block_size
        return native.module().nf4_rows(*parts, first, last - first, weight.shape[1], dtype == torch.bfloat16)


@NF4_LINEAR.backend("native", native.unusable, device="cpu")
def nf4_linear_native(x: Tensor, weight: Nf4Weight, bias_O: Tensor | None = None) -> Tensor:
    """Dequantize in our own C++: into registers for few rows, else into a panel that torch multiplies."""
    if not native.takes(x):
        return nf4_linear(x, weight, bias_O)
    whole = weight.shape[1] % weight.block_size == 0

    def forward(x_TI: Tensor) -> Tensor:
        dense = _Rows(weight, "native")
        if len(x_TI) > FEW_ROWS[x.dtype] or not whole:
            return panels.product(x_TI, dense)
        parts = weight.codes_B, dense.scale_N, weight.table, weight.block_size
        return native.module().nf4_product(x_TI.float(), *parts, weight.shape[0]).to(x.dtype)

    return panels.frozen_linear(x, _Rows(weight, "native"), bias_O, forward)


@NF4_LINEAR.backend("triton", gpu.unusable, device="cuda")
def nf4_linear_triton(x: Tensor, weight: Nf4Weight, bias_O: Tensor | None = None) -> Tensor:
    """Dequantize in Triton: inside the product for few rows, else into a panel that torch multiplies."""
    from luthier.kernels.triton.nf4 import product

    def forward(x_TI: Tensor) -> Tensor:
        dense = _Rows(weight, "triton")
        if len(x_TI) > FEW_ROWS_ON_GPU:
            return panels.product(x_TI, dense)
        return product(x_TI, weight.codes_B, dense.scale_N, weight.table, weight.block_size, weight.shape[0])

    return panels.frozen_linear(x, _Rows(weight, "triton"), bias_O, forward)


@NF4_LINEAR.backend("torch")
def nf4_linear(x: Tensor, weight: Nf4Weight, bias_O: Tensor | None = None) -> Tensor:
    """Dequantize a panel at a time."""
    return panels.frozen_linear(x, weight, bias_O, lambda x_TI: panels.product(x_TI, weight))
