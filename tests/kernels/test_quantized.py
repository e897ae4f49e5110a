"""What the 8-bit and 4-bit weights promise beside equality of their backends."""

import pytest
import torch

from luthier.kernels import nf4, panels
from luthier.kernels.int8_linear import INT8_LINEAR, Int8Weight, int8_linear_reference
from luthier.kernels.nf4 import NF4_LINEAR, Nf4Weight, dequantize

SHAPES = [(8, 64), (37, 70), (3, 5), (130, 192), (64, 1024)]


def usable(op):
    return [b for b in op.backends if b.unusable() is None]


@pytest.mark.parametrize("shape", [(576, 1536), (100, 300)])
def test_int8_product_is_close_to_the_exact_one(shape: tuple[int, int]) -> None:
    x, w = torch.randn(40, shape[1]), torch.randn(shape)
    exact = x @ w.t()
    assert (int8_linear_reference(x, Int8Weight.of(w)) - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("op", [INT8_LINEAR, NF4_LINEAR], ids=lambda op: op.name)
def test_a_row_that_is_not_finite_gives_nothing_finite_and_spares_the_others(op, strange: float) -> None:
    w = torch.randn(40, 128)
    x = torch.randn(5, 128)
    x[2, 77] = strange
    kind = {"int8_linear": Int8Weight, "nf4_linear": Nf4Weight}[op.name]
    for backend in usable(op):
        y = backend.call(x, kind.of(w))
        assert not y[2].isfinite().any() if op is NF4_LINEAR else y[2].isnan().all(), backend.name
        assert y[[0, 1, 3, 4]].isfinite().all(), backend.name


@pytest.mark.parametrize("op", [INT8_LINEAR, NF4_LINEAR], ids=lambda op: op.name)
def test_panels_join(op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL_NUMBERS", 64)
    x, w = torch.randn(70, 65), torch.randn(100, 65)
    kind = {"int8_linear": Int8Weight, "nf4_linear": Nf4Weight}[op.name]
    mine = x.clone().requires_grad_()
    expected = op.reference(mine, kind.of(w))
    (slope,) = torch.autograd.grad(expected.square().sum(), mine)
    for backend in usable(op):
        y = backend.call(mine, kind.of(w))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), mine)[0], slope, rtol=1e-4, atol=1e-2)


def test_an_8_bit_weight_exists_once() -> None:
    weight = Int8Weight.of(torch.randn(64, 256))
    assert weight.num_bytes == 64 * 256 + 64 * 4 * 4
    for backend in usable(INT8_LINEAR):
        if backend.name == "native":
            backend.call(torch.randn(2, 256), weight)
            assert weight.codes_OK is None
            assert weight.num_bytes == 64 * 256 + 64 * 4 * 4
            with pytest.raises(ValueError, match="packed for the processor"):
                weight.to("cpu")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_4_bits_equal_bitsandbytes(shape: tuple[int, int], kind: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    w = torch.randn(shape)
    w[0, :2] = torch.tensor([0.0, 40.0])
    codes, state = functional.quantize_4bit(w, blocksize=64, quant_type=kind)
    weight = Nf4Weight.of(w, kind=kind)
    assert torch.equal(weight.codes_B, codes[:, 0])
    assert torch.equal(weight.absmax_N, state.absmax)
    assert torch.equal(dequantize(weight), functional.dequantize_4bit(codes, state))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_in_8_bits_are_those_of_bitsandbytes_or_nearer(shape: tuple[int, int]) -> None:
    """Its processor code picks the level beside the nearest now and then."""
    functional = pytest.importorskip("bitsandbytes.functional")
    w = torch.randn(shape)
    exact_N = Nf4Weight.of(w).absmax_N
    _, state = functional.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=True)
    weight = Nf4Weight.of(w, double=True)
    assert torch.equal(weight.outer, torch.cat([state.state2.absmax, state.offset[None]]))
    assert torch.equal(nf4.scale_levels(w.device), state.state2.code)
    theirs_N = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    nearer_N = (weight.scales() - exact_N).abs() <= (theirs_N - exact_N).abs() + 1e-6
    assert nearer_N.all()
    if len(exact_N) > 100:
        assert (weight.absmax_N == state.absmax).float().mean() > 0.95


def test_an_8_bit_weight_comes_back_out_of_the_packed_form() -> None:
    if reason := next(b for b in INT8_LINEAR.backends if b.name == "native").unusable():
        pytest.skip(reason)
    w = torch.randn(37, 70)
    w[3] = 0
    kept, packed = Int8Weight.of(w), Int8Weight.of(w).pack()
    assert packed.codes_OK is None
    assert torch.equal(packed.parts()["codes_OK"], kept.parts()["codes_OK"])
    torch.testing.assert_close(packed.parts()["scale_OG"], kept.parts()["scale_OG"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_low_rank_addition_goes_into_the_product(dropout: float) -> None:
    parts = [torch.randn(*shape).requires_grad_() for shape in ((9, 64), (4, 64), (40, 4))]
    weight = Nf4Weight.of(torch.randn(40, 64))
    keep = torch.rand(9, 64) >= dropout if dropout else None

    def gradients(y: torch.Tensor) -> list[torch.Tensor]:
        return [y, *torch.autograd.grad(y.square().sum(), parts)]

    x, a, b = parts
    seen = x if keep is None else x * keep / (1 - dropout)
    expected = gradients(x @ dequantize(weight).t() + 0.5 * (seen @ a.t() @ b.t()))
    for backend in usable(NF4_LINEAR):
        found = gradients(panels.add_low_rank(backend.call(x, weight), x, a, b, 0.5, keep, dropout))
        for want, have in zip(expected, found, strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-3)


def test_nf4_bytes() -> None:
    w = torch.randn(256, 256)
    assert Nf4Weight.of(w).num_bytes == w.numel() // 2 + 4 * w.numel() // 64
    assert Nf4Weight.of(w, double=True).num_bytes == w.numel() // 2 + w.numel() // 64 + 4 * (w.numel() // 64 // 256 + 1)


def test_levels_of_scales_are_256_and_grow() -> None:
    table = nf4.scale_levels(torch.device("cpu"))
    assert len(table) == 256
    assert (table.diff() > 0).all()
