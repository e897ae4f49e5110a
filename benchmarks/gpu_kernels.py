"""Checks every backend of a kernel against its reference, and times it beside the reference and its compiled form."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import gpu_samples
import torch
from gpu_samples import Draw, Sample
from torch import Tensor

from luthier.kernels.cpu import prepare_process
from luthier.kernels.op import KERNELS, Backend, Op

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

LIMITS = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest norm of the difference over the norm; float32 by the matrix units' short form would miss its limit."""
ROTATED_BYTES, MOST_SETS = 256 * 2**20, 8
"""Several sets of inputs, so that a call does not find its own in the cache."""
Line = dict[str, Any]


def measure(name: str, options: argparse.Namespace) -> Iterator[Line]:
    """Yield the lines of one kernel."""
    prepare(options)
    op = KERNELS.get(name)
    for sample in gpu_samples.samples(name, small=options.small):
        for dtype in options.dtypes:
            facts = {"kernel": name, "sample": sample.name, "dtype": dtype}
            for part in (_checks, _times):
                try:
                    yield from (
                        {**line, **facts, "device": _device(options)} for line in part(op, sample, dtype, options)
                    )
                except torch.OutOfMemoryError as error:
                    yield {"measure": f"kernel{part.__name__}", **facts, "error": str(error).splitlines()[0]}


def ceilings(options: argparse.Namespace) -> Iterator[Line]:
    """Yield what the device can do at most: copied bytes and product operations a second."""
    prepare(options)
    side = 512 if options.small else 8192
    for dtype in (getattr(torch, name) for name in options.dtypes):
        a, b = (torch.randn(side, side, device=options.device).to(dtype) for _ in range(2))
        into = torch.empty_like(a)
        ms = _median_ms({"copy": lambda: into.copy_(a), "product": lambda: a @ b}, options)  # noqa: B023
        line = {"measure": "ceiling", "dtype": str(dtype).removeprefix("torch."), "device": _device(options)}
        yield line | {
            "copy_gb_per_second": round(2 * a.nbytes / ms["copy"][0] / 1e6, 1),
            "product_tflops": round(2 * side**3 / ms["product"][0] / 1e9, 2),
        }


def prepare(options: argparse.Namespace) -> None:
    """Set threads; the small form keeps to the number that the environment gives."""
    prepare_process(int(os.environ.get("OMP_NUM_THREADS", "0")) if options.small else 0)


def _device(options: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if options.device == "cuda" else "cpu, Triton interpreted"


def _usable(op: Op, options: argparse.Namespace) -> list[Backend]:
    # The interpreter lets Triton compute on the processor.
    kinds = (None, "cuda") if options.device == "cuda" else (None, "cuda", "cpu")
    return [backend for backend in op.backends if backend.device in kinds and backend.unusable() is None]


def _arguments(sample: Sample, dtype: str, options: argparse.Namespace, seed: int) -> list[Any]:
    generator = torch.Generator(options.device).manual_seed(seed)
    made = list(sample.make(Draw(getattr(torch, dtype), options.device, generator)))
    for place in sample.learned:
        made[place].requires_grad_()
    return made


def _forward(call: Callable[..., Any], arguments: list[Any]) -> list[Tensor]:
    out = call(*arguments)
    return [o for o in (out if isinstance(out, tuple) else (out,)) if o is not None]


def _with_gradients(
    call: Callable[..., Any], arguments: list[Any], sample: Sample, slopes: list[Tensor]
) -> list[Tensor]:
    outs = _forward(call, arguments)
    leaves = [arguments[place] for place in sample.learned]
    return [*outs, *torch.autograd.grad(outs, leaves, [s.to(o.dtype) for s, o in zip(slopes, outs, strict=True)])]


def _copied(arguments: list[Any], sample: Sample, dtype: torch.dtype | None = None) -> list[Any]:
    """Return fresh leaves; records of packed weights change in place, so they are copied too."""
    made: list[Any] = []
    for place, argument in enumerate(arguments):
        if torch.is_tensor(argument):
            wide = dtype if argument.is_floating_point() else None
            made.append(argument.detach().to(wide or argument.dtype, copy=True).requires_grad_(place in sample.learned))
        else:
            device = arguments[0].device
            made.append(argument.to(device) if hasattr(argument, "to") else argument)
    return made


def _checks(op: Op, sample: Sample, dtype: str, options: argparse.Namespace) -> Iterator[Line]:
    arguments = _arguments(sample, dtype, options, seed=1)
    wide = torch.float64 if dtype == "float32" else torch.float32
    slopes = [torch.randn_like(o, dtype=torch.float32) for o in _forward(op.reference, _copied(arguments, sample))]
    expected = _with_gradients(op.reference, _copied(arguments, sample, wide), sample, slopes)
    for backend in _usable(op, options):
        own = _copied(arguments, sample)
        _poison(options)
        try:
            found = _with_gradients(backend.call, own, sample, slopes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises is a line
            yield {"measure": "kernel_check", "backend": backend.name, "error": repr(error)[:500]}
            continue
        errors = [_error(have, want) for have, want in zip(found, expected, strict=True)]
        right = all(error <= LIMITS[dtype] for error in errors)
        line = {"measure": "kernel_check", "backend": backend.name, "ok": right, "limit": LIMITS[dtype]}
        yield line | {"errors": [float(f"{error:.3g}") for error in errors]}


def _error(have: Tensor, want: Tensor) -> float:
    difference = (have.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30)
    return difference.item() if bool(difference.isfinite()) else float("inf")


def _poison(options: argparse.Namespace) -> None:
    """Leave NaN in the memory that comes next, so that what a kernel does not write shows."""
    blocks = [torch.full((size,), torch.nan, device=options.device) for size in (2**10, 2**16, 2**20, 2**24, 2**26)]
    del blocks


def _times(op: Op, sample: Sample, dtype: str, options: argparse.Namespace) -> Iterator[Line]:
    first = _arguments(sample, dtype, options, seed=2)
    size = sum(a.nbytes for a in first if torch.is_tensor(a))
    count = 1 if options.small else max(1, min(MOST_SETS, ROTATED_BYTES // max(1, size)))
    sets = [first, *(_arguments(sample, dtype, options, seed=3 + i) for i in range(count - 1))]
    slopes = [torch.randn_like(o, dtype=torch.float32) for o in _forward(op.reference, first)]
    sides: dict[str, Callable[..., Any]] = {backend.name: backend.call for backend in _usable(op, options)}
    sides = {"reference": op.reference, **sides}
    if options.compiled:
        # Otherwise the forms that earlier samples left behind count against the limit of recompilations.
        torch.compiler.reset()
        sides["compiled"] = torch.compile(op.reference, dynamic=False)
    forms = {name: [_copied(one, sample) for one in sets] for name in sides}
    passes: dict[str, Callable[[Callable[..., Any], list[Any]], Any]] = {
        "forward": lambda call, a: _without_gradients(call, a),
        "forward_backward": lambda call, a: _with_gradients(call, a, sample, slopes),
    }
    for kind, run in passes.items():
        turn = dict.fromkeys(sides, 0)

        def once(name: str, run: Callable[..., Any] = run, turn: dict[str, int] = turn) -> None:
            turn[name] += 1
            run(sides[name], forms[name][turn[name] % count])

        failed = {name: error for name in sides if (error := _attempt(lambda n=name: once(n))) is not None}
        calls = {name: (lambda n=name: once(n)) for name in sides if name not in failed}
        for name, error in failed.items():
            yield {"measure": "kernel_time", "pass": kind, "side": name, "error": error}
        ms = _median_ms(calls, options)
        line = {"measure": "kernel_time", "pass": kind, "rounds": options.rounds, "input_bytes": size}
        yield line | {
            "ms": {name: round(value[0], 4) for name, value in ms.items()},
            "spread": {name: [round(part, 4) for part in value[1:]] for name, value in ms.items()},
            "peak_bytes": {name: _peak(call, options) for name, call in calls.items()},
        }


def _without_gradients(call: Callable[..., Any], arguments: list[Any]) -> None:
    with torch.no_grad():
        call(*arguments)


def _attempt(call: Callable[[], None]) -> str | None:
    """Return what the first call raised, or None."""
    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a kernel raises is a line
        return repr(error)[:500]
    return None


def _median_ms(
    calls: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, tuple[float, float, float]]:
    """Return median, least and most milliseconds of each call, in turns after a warm-up."""
    for _ in range(0 if options.small else 3):
        for call in calls.values():
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            found[name].append(_one_ms(call, options))
    return {name: (median(ms), min(ms), max(ms)) for name, ms in found.items()}


def _one_ms(call: Callable[[], Any], options: argparse.Namespace) -> float:
    if options.device != "cuda":
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


def _peak(call: Callable[[], Any], options: argparse.Namespace) -> int | None:
    """Return bytes that a call takes at most beside what was there."""
    if options.device != "cuda":
        return None
    torch.cuda.synchronize()
    start = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - start
