"""Arguments for every kernel in sizes of real models, and in sizes for Triton's interpreter.

Shapes: T tokens, D hidden, F feed-forward, V vocabulary, H query heads, K key heads, R rank or turned features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.batch import Spans
from luthier.kernels.int8_linear import Int8Weight
from luthier.kernels.nf4 import Nf4Weight


@dataclass(frozen=True)
class Draw:
    """Fresh random numbers where and in what form they are wanted."""

    dtype: torch.dtype
    device: str
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(*shape, generator=self.generator, device=self.device)
        return (numbers * scale).to(self.dtype)

    def below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(0, limit, shape, generator=self.generator, device=self.device)


@dataclass(frozen=True)
class Sample:
    """One set of arguments."""

    name: str
    make: Callable[[Draw], tuple[Any, ...]]
    learned: tuple[int, ...] = (0,)
    """Places of the tensors that get a gradient."""


Sizes = dict[str, int]
LARGE: Sizes = {"T": 8192, "N": 2048, "D": 2048, "F": 8192, "V": 128256, "H": 32, "K": 8, "span": 4096}
SMALL: Sizes = {"T": 40, "N": 9, "D": 64, "F": 96, "V": 301, "H": 4, "K": 2, "span": 144}


def _norms(s: Sizes) -> Iterable[Sample]:
    for name, learned in (("frozen", (0,)), ("learned", (0, 1))):
        yield Sample(name, lambda d: (d.normal(s["T"], s["D"]), d.normal(s["D"]), 1e-5), learned)


def _layer_norms(s: Sizes) -> Iterable[Sample]:
    yield Sample("learned", lambda d: (d.normal(s["T"], s["D"]), d.normal(s["D"]), d.normal(s["D"]), 1e-5), (0, 1, 2))


def _gates(s: Sizes) -> Iterable[Sample]:
    for kind in ("silu", "gelu_tanh"):
        yield Sample(kind, lambda d, k=kind: (d.normal(s["T"], s["F"]), d.normal(s["T"], s["F"]), k), (0, 1))


def _rotations(s: Sizes) -> Iterable[Sample]:
    for size in (64, 128):

        def make(d: Draw, size: int = size) -> tuple[Any, ...]:
            angles_TR = torch.rand(s["T"], size, generator=d.generator, device=d.device) * 6
            return d.normal(s["T"], s["H"], size).transpose(0, 1), angles_TR.cos(), angles_TR.sin()

        yield Sample(f"head {size}", make)


def _heads(s: Sizes) -> Iterable[Sample]:
    def make(d: Draw, softcap: float | None = None, *, entropy: bool = False) -> tuple[Any, ...]:
        weight_VD = d.normal(s["V"], s["D"], scale=2 / s["D"] ** 0.5)
        return d.normal(s["N"], s["D"]), weight_VD, d.below(s["V"], s["N"]), None, 1.0, softcap, entropy

    yield Sample("plain", make)
    yield Sample("entropy", lambda d: make(d, entropy=True))
    yield Sample("softcap", lambda d: make(d, 30.0))


def _lora(s: Sizes) -> Iterable[Sample]:
    for rank in (16, 64):

        def make(d: Draw, rank: int = rank) -> tuple[Any, ...]:
            inputs, outputs = s["D"], s["F"]
            shapes = (s["T"], inputs), (outputs, inputs), (rank, inputs), (outputs, rank)
            x, weight, a, b = (d.normal(*shape, scale=shape[1] ** -0.25) for shape in shapes)
            return x, weight, None, a, b, 2.0

        yield Sample(f"rank {rank}", make, (0, 3, 4))


def _spans(lengths: Iterable[int], parents: Iterable[int]) -> Spans:
    ends: list[int] = []
    for length in lengths:
        ends.append((ends[-1] if ends else 0) + length)
    return Spans((0, *ends[:-1]), tuple(ends), tuple(parents))


def _attentions(s: Sizes) -> Iterable[Sample]:
    tokens = s["span"]
    eighth = tokens // 8
    forests = {
        "one span": _spans([tokens], [-1]),
        "short spans": _spans([eighth - 3 + i for i in range(8)], [-1] * 8),
        "prefix and 6 answers": _spans([2 * eighth, *[eighth - 1] * 6], [-1, *[0] * 6]),
    }

    def make(d: Draw, spans: Spans, size: int, **rule: Any) -> tuple[Any, ...]:
        count = spans.end[-1]
        q, k, v = (d.normal(count, heads, size).transpose(0, 1) for heads in (s["H"], s["K"], s["K"]))
        return q, k, v, spans, size**-0.5, rule.get("window"), rule.get("softcap")

    learned = 0, 1, 2
    for name, spans in forests.items():
        for size in (64,) if s is SMALL else (64, 128):
            yield Sample(f"{name}, head {size}", lambda d, sp=spans, n=size: make(d, sp, n), learned)
    spans = forests["one span"]
    yield Sample("window, head 64", lambda d: make(d, spans, 64, window=tokens // 4), learned)
    yield Sample("softcap, head 256", lambda d: make(d, spans, 256, softcap=50.0), learned)


def _frozen(kind: Callable[[Tensor], Any]) -> Callable[[Sizes], Iterable[Sample]]:
    def samples(s: Sizes) -> Iterable[Sample]:
        for rows in (1, 32, s["T"]):

            def make(d: Draw, rows: int = rows) -> tuple[Any, ...]:
                weight_OI = torch.randn(s["F"], s["D"], generator=d.generator, device=d.device) / s["D"] ** 0.5
                return d.normal(rows, s["D"]), kind(weight_OI), None

            yield Sample(f"{rows} rows", make)

    return samples


_SAMPLES: dict[str, Callable[[Sizes], Iterable[Sample]]] = {
    "rms_norm": _norms,
    "layer_norm": _layer_norms,
    "gated": _gates,
    "rope": _rotations,
    "linear_logprobs": _heads,
    "lora_linear": _lora,
    "forest_attention": _attentions,
    "int8_linear": _frozen(Int8Weight.of),
    "nf4_linear": _frozen(lambda w: Nf4Weight.of(w, double=True)),
}


def samples(kernel: str, *, small: bool) -> list[Sample]:
    """Return the samples of a kernel. Raises KeyError for one that has none here."""
    return [*_SAMPLES[kernel](SMALL if small else LARGE)]
