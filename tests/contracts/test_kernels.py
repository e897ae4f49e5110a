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


@pytest.mark.parametrize("form", ["linear_logprobs", "linear_logprobs_native"])
def test_logits_are_never_whole(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of a scored head is one chunk, also for a vocabulary of 262,144."""
    from luthier.kernels import linear_logprobs as module

    seen: list[int] = []

    def spied(original):
        def spy(x, w, *bias):
            seen.append(x.shape[0] * w.shape[0] * 4)
            return original(x, w, *bias)

        return spy

    monkeypatch.setattr(module.F, "linear", spied(module.F.linear))
    monkeypatch.setattr(module.products, "times_transposed", spied(module.products.times_transposed))
    h, w = torch.randn(300, 4, requires_grad=True), torch.randn(262_144, 4)
    targets = torch.zeros(300, dtype=torch.long)
    getattr(module, form)(h, w, targets, chunk_bytes=16 * 2**20)[0].sum().backward()
    assert 0 < max(seen) <= 16 * 2**20


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
def test_chunks_change_nothing(chunk_bytes: int) -> None:
    from luthier.kernels.linear_logprobs import LINEAR_LOGPROBS

    arguments = LINEAR_LOGPROBS.samples[2](torch.float32)
    for backend in LINEAR_LOGPROBS.backends:
        if backend.device == "cuda" or backend.unusable():
            continue
        for want, have in zip(backend.call(*arguments), backend.call(*arguments, chunk_bytes), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-6)


def test_attention_adds_up_the_same_every_time() -> None:
    """Sums of gradients have a fixed order, whichever thread is free first: resumed runs depend on it."""
    from luthier.kernels.attention import FOREST_ATTENTION

    call, threads = FOREST_ATTENTION.choose("cpu")[1], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [outputs_and_gradients(call, FOREST_ATTENTION.samples[-2](torch.float32), ()) for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
