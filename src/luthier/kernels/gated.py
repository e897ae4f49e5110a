"""The gate of a gated MLP: SwiGLU and GeGLU (arXiv:2002.05202).

Shapes: T rows, F feed-forward size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu, native
from luthier.kernels.op import Op, add


def gated_reference(gate_TF: Tensor, up_TF: Tensor, activation: str = "silu") -> Tensor:
    """Return activation(gate) * up; `activation` is "silu" or "gelu_tanh"."""
    gated = F.silu(gate_TF) if activation == "silu" else F.gelu(gate_TF, approximate="tanh")
    return gated * up_TF


class _SwiGlu(torch.autograd.Function):
    """Keeps only gate and up; the sigmoid is made again."""

    @staticmethod
    def forward(ctx, gate_TF, up_TF):
        ctx.save_for_backward(gate_TF, up_TF)
        return F.silu(gate_TF).mul_(up_TF)

    @staticmethod
    def backward(ctx, *grads):
        gate_TF, up_TF = ctx.saved_tensors
        d_up = F.silu(gate_TF).mul_(grads[0])
        d_gate = torch.ops.aten.silu_backward(grads[0] * up_TF, gate_TF)
        return d_gate, d_up


class _GeGlu(torch.autograd.Function):
    """Keeps only gate and up."""

    @staticmethod
    def forward(ctx, gate_TF, up_TF):
        ctx.save_for_backward(gate_TF, up_TF)
        return F.gelu(gate_TF, approximate="tanh").mul_(up_TF)

    @staticmethod
    def backward(ctx, *grads):
        gate_TF, up_TF = ctx.saved_tensors
        d_up = F.gelu(gate_TF, approximate="tanh").mul_(grads[0])
        d_gate = torch.ops.aten.gelu_backward(grads[0] * up_TF, gate_TF, approximate="tanh")
        return d_gate, d_up


def _sample(num_rows: int, size: int, activation: str):
    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, str]:
        generator = torch.Generator().manual_seed(num_rows)
        gate, up = torch.randn(2, num_rows, size, generator=generator).to(dtype).unbind(0)
        return gate, up, activation

    return make


_SHAPES = ((1, 8), (7, 33), (0, 4), (128, 1024))
GATED = add(
    Op("gated", gated_reference, samples=[_sample(*shape, a) for shape in _SHAPES for a in ("silu", "gelu_tanh")])
)


class _NativeGated(torch.autograd.Function):
    """Keeps only gate and up; one pass over memory each way, in our own C++."""

    @staticmethod
    def forward(ctx, gate_TF, up_TF, is_silu):
        gate_TF, up_TF = gate_TF.contiguous(), up_TF.contiguous()
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.is_silu = is_silu
        return native.module().gated(gate_TF, up_TF, is_silu)

    @staticmethod
    def backward(ctx, *grads):
        gate_TF, up_TF = ctx.saved_tensors
        grad = grads[0].to(gate_TF.dtype).contiguous()
        return *native.module().gated_backward(grad, gate_TF, up_TF, ctx.is_silu), None


@GATED.backend("native", native.unusable, device="cpu")
def gated_native(gate_TF: Tensor, up_TF: Tensor, activation: str = "silu") -> Tensor:
    """Compute the gate in our own C++."""
    if not native.takes(gate_TF, up_TF):
        return gated(gate_TF, up_TF, activation)
    return _NativeGated.apply(gate_TF, up_TF, activation == "silu")  # pyright: ignore[reportReturnType]


@GATED.backend("triton", gpu.unusable, device="cuda")
def gated_triton(gate_TF: Tensor, up_TF: Tensor, activation: str = "silu") -> Tensor:
    """Compute the gate in Triton."""
    from luthier.kernels.triton.gated import gated as call

    return call(gate_TF, up_TF, activation)


@GATED.backend("torch")
def gated(gate_TF: Tensor, up_TF: Tensor, activation: str = "silu") -> Tensor:
    """Compute the gate as the reference does, keeping two tensors instead of three."""
    function = _SwiGlu if activation == "silu" else _GeGlu
    return function.apply(gate_TF, up_TF)  # pyright: ignore[reportReturnType]
