"""Every backend of every kernel equals its reference, forward and backward."""

import os

import pytest
import torch

from luthier.kernels.op import KERNELS, Backend

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 6e-2}
NOT_ON_GPU = {torch.float64}
CASES = [
    pytest.param(name, b, i, dtype, id=f"{name}-{b.name}-{i}-{str(dtype).removeprefix('torch.')}")
    for name, op in KERNELS.items()
    for b in op.backends
    for i in range(len(op.samples))
    for dtype in TOLERANCE
    if b.device != "cuda" or dtype not in NOT_ON_GPU
]


def place(arguments, backend):
    """Move tensors to where the backend computes: Triton's interpreter takes them on the processor."""
    there = "cuda" if backend.device == "cuda" and os.environ["TRITON_INTERPRET"] != "1" else "cpu"
    return [a.to(there) if hasattr(a, "to") else a for a in arguments]


def outputs_and_gradients(call, arguments, constant):
    arguments = [
        a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() and i not in constant else a
        for i, a in enumerate(arguments)
    ]
    out = call(*arguments)
    outs = [o for o in (out if isinstance(out, tuple) else (out,)) if o is not None]
    generator = torch.Generator().manual_seed(1)
    loss = sum((o.float() * torch.randn(o.shape, generator=generator).to(o.device)).sum() for o in outs)
    leaves = [a for a in arguments if torch.is_tensor(a) and a.requires_grad]
    return [*outs, *torch.autograd.grad(loss, leaves, allow_unused=True)]


@pytest.mark.parametrize(("name", "backend", "sample", "dtype"), CASES)
def test_backend_equals_reference(name: str, backend: Backend, sample: int, dtype: torch.dtype) -> None:
    if reason := backend.unusable():
        pytest.skip(reason)
    op = KERNELS.get(name)
    expected = outputs_and_gradients(op.reference, op.samples[sample](dtype), op.constant)
    found = outputs_and_gradients(backend.call, place(op.samples[sample](dtype), backend), op.constant)
    for want, have in zip(expected, found, strict=True):
        if want is None:
            continue
        scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        torch.testing.assert_close(have.cpu().double() / scale, want.double() / scale, rtol=0, atol=TOLERANCE[dtype])


def test_every_kernel_has_a_backend_and_samples() -> None:
    for name, op in KERNELS.items():
        assert op.backends, name
        assert len(op.samples) >= 3, name


def test_non_contiguous_input() -> None:
    from luthier.core.batch import Spans
    from luthier.kernels.attention import forest_attention, forest_attention_reference

    spans = Spans((0, 6), (6, 15), (-1, 0))
    q = torch.randn(15, 4, 8).transpose(0, 1)
    k, v = torch.randn(2, 15, 2, 8).transpose(1, 2).unbind(0)
    torch.testing.assert_close(forest_attention(q, k, v, spans, 0.3), forest_attention_reference(q, k, v, spans, 0.3))


def test_logits_are_never_whole() -> None:
    """The largest tensor of a scored head is one chunk."""
    from luthier.kernels import linear_logprobs as module

    seen: list[int] = []
    original = module.F.linear

    def spy(x, w, b=None):
        seen.append(x.shape[0])
        return original(x, w, b)

    module.F.linear = spy
    try:
        h, w = torch.randn(1000, 4, requires_grad=True), torch.randn(200_000, 4)
        module.linear_logprobs(h, w, torch.zeros(1000, dtype=torch.long))[0].sum().backward()
    finally:
        module.F.linear = original
    assert max(seen) < 100
