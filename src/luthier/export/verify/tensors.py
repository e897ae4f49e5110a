"""Hold the tensors of a GGUF file against the weights that they were made from.

Shapes: R rows, B blocks, N numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.progress import following
from luthier.export.verify.container import Container, Stored, read_bytes
from luthier.export.verify.report import Check, not_done

if TYPE_CHECKING:
    from luthier.export.gguf.plan import Planned

CHUNK = 1 << 22
"""Numbers compared at a time."""
RELATIVE_RMS = {
    "Q6_K": 0.028, "Q5_K": 0.055, "Q4_K": 0.11, "Q3_K": 0.23, "Q2_K": 0.45, "Q5_0": 0.075, "Q5_1": 0.07, "Q4_0": 0.15,
    "Q4_1": 0.12, "Q8_1": 0.01, "IQ4_NL": 0.12, "IQ4_XS": 0.12, "IQ3_S": 0.26, "IQ3_XXS": 0.35, "IQ2_S": 0.6,
    "IQ2_XS": 0.6, "IQ2_XXS": 0.7, "IQ1_M": 0.9, "IQ1_S": 0.9, "MXFP4": 0.2,
}  # fmt: skip
"""Most that a tensor of a type may differ, root mean square of the difference over that of the weights: 1.3 times the
worst that was measured on SmolLM2 and on normal, Laplace and Student weights (docs/verification.md). Types below 3 bits
cannot be made without an importance matrix and were not measured."""
MOST_STEPS = 0.5 + 2 * 127 * 2**-11
"""Q8_0: half a step, and what 127 steps are off because the step itself is kept in half precision, and because the
quantizer may have read weights in half precision."""


@dataclass(slots=True)
class Distance:
    """How far a tensor is from its weights."""

    worst: float = 0.0
    """Of the biggest difference its share of what is allowed; 1 is the limit."""
    squares: float = 0.0
    weights: float = 0.0
    non_finite: int = 0

    @property
    def rms(self) -> float:
        """Return the root mean square of the difference over that of the weights."""
        return sqrt(self.squares / self.weights) if self.weights else sqrt(self.squares)


def values_of(container: Container, stored: Stored) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the numbers of a tensor in float32 by rows, [R, N of a row], with the rows that they are."""
    import numpy as np
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    width = stored.shape[-1]
    rows = prod(stored.shape) // width
    data = read_bytes(container, stored).reshape(rows, -1)
    each = max(1, CHUNK // width)
    for first in range(0, rows, each):
        part = np.ascontiguousarray(data[first : first + each])
        if stored.type in _PLAIN:
            numbers = part.view(_PLAIN[stored.type]).astype(np.float32)
        else:
            numbers = quants.dequantize(part, GGMLQuantizationType[stored.type])
        yield slice(first, first + len(part)), torch.from_numpy(numbers.reshape(len(part), width))


_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
_Worst = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _exact(gap: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (gap > 0).float() * 2


def _rounded(bits: int, smallest: float) -> _Worst:
    """Return the measure for a float format with so many significant bits; half of the last one is allowed."""

    def worst(gap: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return gap / (weights.abs() * 2.0**-bits).clamp_min(smallest / 2)

    return worst


def _by_block(gap: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the measure for blocks of 32 with one step, of which the biggest number has 127."""
    step_B1 = weights.reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    # A step below the smallest half-precision number is lost.
    return gap.reshape(-1, 32) / (step_B1 * MOST_STEPS).clamp_min(127 * 2.0**-25)


_WORST: dict[str, _Worst] = {
    "F32": _exact, "F64": _exact, "F16": _rounded(11, 2.0**-24), "BF16": _rounded(8, 2.0**-133), "Q8_0": _by_block,
}  # fmt: skip


def distance(container: Container, stored: Stored, weights: torch.Tensor) -> Distance:
    """Return how far a tensor of the file is from `weights`."""
    found = Distance()
    rows = weights.float().reshape(-1, stored.shape[-1])
    for place, numbers in values_of(container, stored):
        finite = torch.isfinite(numbers)
        found.non_finite += int((~finite).sum())
        wanted = rows[place]
        gap = torch.where(finite, (numbers - wanted).abs(), torch.zeros(()))
        found.squares += float((gap.double() ** 2).sum())
        found.weights += float((wanted.double() ** 2).sum())
        if stored.type in _WORST:
            found.worst = max(found.worst, float(_WORST[stored.type](gap, wanted).max()))
    if stored.type not in _WORST:
        found.worst = found.rms / RELATIVE_RMS.get(stored.type, 0.0) if stored.type in RELATIVE_RMS else float("inf")
    return found


# ---- checks

LIMITS = "F32 equal; F16 and BF16 one rounding; Q8_0 half a step; others by relative RMS: " + ", ".join(
    f"{kind} {limit:.0%}" for kind, limit in RELATIVE_RMS.items()
)


def check_names(container: Container, planned: Sequence[Planned]) -> Check:
    """Compare names and shapes with the model's own list."""
    limit = "the tensors that this model needs, each in its shape"
    wanted = {each.name: tuple(each.shape) for each in planned}
    there = {name: stored.shape for name, stored in container.tensors.items()}
    missing, extra = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys())
    other = [n for n in wanted.keys() & there.keys() if _squeezed(wanted[n]) != _squeezed(there[n])]
    numbers = {"missing": len(missing), "extra": len(extra), "other_shape": len(other)}
    if not (missing or extra or other):
        return Check("tensor names", True, f"{len(there)} tensors, none missing, none extra", limit, numbers)
    said = [f"{len(names)} {word} ({', '.join(names[:3])})" for word, names in
            (("missing", missing), ("extra", extra), ("of another shape", sorted(other))) if names]  # fmt: skip
    return Check("tensor names", False, ", ".join(said), limit, numbers)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without leading ones, which GGUF does not keep."""
    kept = list(shape)
    while len(kept) > 1 and kept[0] == 1:
        kept.pop(0)
    return tuple(kept)


def check_values(container: Container, planned: Sequence[Planned]) -> Check:
    """Compare every number of the file with the weight that it stands for."""
    numbers: dict[str, float] = {}
    wrong: list[tuple[float, str]] = []
    not_finite: list[str] = []
    for each in following(planned):
        stored = container.tensors.get(each.name)
        if stored is None or prod(stored.shape) != prod(each.shape):
            continue  # said by check_names
        found = distance(container, stored, each.read())
        numbers[f"rms {stored.type}"] = max(numbers.get(f"rms {stored.type}", 0.0), found.rms)
        if found.non_finite:
            not_finite.append(each.name)
        if found.worst > 1:
            wrong.append((found.worst, f"{each.name} ({stored.type}, relative RMS {found.rms:.2g})"))
    numbers |= {"too_far": len(wrong), "non_finite": len(not_finite)}
    if not_finite:
        found = f"{len(not_finite)} tensors have numbers that are not finite, the first is {not_finite[0]}"
        return Check("tensor values", False, found, LIMITS, numbers)
    if wrong:
        found = f"{len(wrong)} tensors are not the weights, the worst is {max(wrong)[1]}"
        return Check("tensor values", False, found, LIMITS, numbers)
    shown = ", ".join(f"{key.removeprefix('rms ')} {value:.2g}" for key, value in numbers.items() if "rms" in key)
    return Check("tensor values", True, f"largest relative RMS by type: {shown or 'nothing compared'}", LIMITS, numbers)


def check_finite(container: Container) -> Check:
    """Look for numbers that are not finite, where there is nothing to compare with."""
    limit = "every number finite"
    bad = [
        name
        for name, stored in container.tensors.items()
        if not all(bool(torch.isfinite(numbers).all()) for _, numbers in values_of(container, stored))
    ]
    if bad:
        found = f"{len(bad)} tensors have numbers that are not finite, the first is {bad[0]}"
        return Check("tensor values", False, found, limit, {"non_finite": len(bad)})
    return Check("tensor values", True, f"{len(container.tensors)} tensors are finite", limit, {"non_finite": 0})


@dataclass(slots=True)
class Moved:
    """What is left in a file of that which training changed in a tensor."""

    along: float = 0.0
    """Difference between file and base, along the change of training."""
    change: float = 0.0
    """Squared change of training: `along` of a file that has all of it."""
    noise: float = 0.0
    """Variance of `along` from rounding that has no direction."""
    from_base: float = 0.0
    """Relative RMS of the file from the base."""

    @property
    def is_measured(self) -> bool:
        """Whether rounding hides less than a tenth of the change."""
        return sqrt(self.noise) < 0.1 * self.change


def check_moved(container: Container, planned: Sequence[Planned], base: Sequence[Planned]) -> Check:
    """See that what training moved has moved in the file.

    The file's difference from the base is projected on what training changed: 1 where the change is there, 0 where the
    base was written. Quantizing noise is far bigger than the change of one number, but has no direction, unless the
    base lies on the grid of the form already (a model that came quantized): then small changes are rounded back to it.
    Such tensors are told apart by a file that is nearer to the base than rounding lets it be.
    """
    limit = "at least half of what training changed is in the file; all of it is 1"
    before = {each.name: each for each in base}
    found = dict[str, Moved]()
    for each in following(planned):
        stored, old = container.tensors.get(each.name), before.get(each.name)
        if stored is not None and old is not None and tuple(old.shape) == tuple(each.shape):
            moved = _projection(container, stored, each.read(), old.read())
            if moved.change > 0:
                found[each.name] = moved
    if not found:
        return Check("training is in it", False, "no weight differs from the base: the adapter is missing", limit)
    whole = Moved(*(sum(getattr(each, part) for each in found.values()) for part in ("along", "change", "noise")))
    lost = [name for name, moved in found.items() if moved.is_measured and moved.along < 0.5 * moved.change]
    rounded = [name for name in lost if found[name].from_base < _on_grid(container.tensors[name].type)]
    left_out = [name for name in lost if name not in rounded]
    share = whole.along / whole.change
    numbers = {"moved": len(found), "left_out": len(left_out), "rounded_away": len(rounded), "share": share}
    said = f"{len(found)} tensors moved, {share:.3f} of the change is there"
    if left_out:
        said += f"; {len(left_out)} are still the base's, the first is {left_out[0]}"
    if rounded:
        said += f"; {len(rounded)} were rounded back to a base quantized before ({rounded[0]}), a wider form keeps them"
    if not (left_out or whole.is_measured):
        return not_done("training is in it", f"{len(found)} tensors moved by less than rounding lets see", limit)
    return Check("training is in it", not left_out and share >= 0.5, said, limit, numbers)


_USUAL_RMS = {"F32": 0.0, "F16": 1.7e-4, "BF16": 1.4e-3, "Q8_0": 5e-3} | {
    kind: 0.65 * limit for kind, limit in RELATIVE_RMS.items()
}
"""Relative RMS of ordinary weights in a type."""


def _on_grid(kind: str) -> float:
    """Return the relative RMS below which weights must have been on the grid of a type before."""
    return 0.6 * _USUAL_RMS.get(kind, 0.0)


def _projection(container: Container, stored: Stored, new: Any, old: Any) -> Moved:
    found = Moved()
    rounding = from_base = weights = 0.0
    width = stored.shape[-1]
    new_rows, old_rows = new.float().reshape(-1, width), old.float().reshape(-1, width)
    for place, numbers in values_of(container, stored):
        change, off = (new_rows[place] - old_rows[place]).double(), (numbers - old_rows[place]).double()
        found.along += float((off * change).sum())
        found.change += float((change**2).sum())
        rounding += float(((off - change) ** 2).sum())
        from_base += float((off**2).sum())
        weights += float((old_rows[place].double() ** 2).sum())
    found.noise = found.change * rounding / prod(stored.shape)
    found.from_base = sqrt(from_base / weights) if weights else float("inf")
    return found
