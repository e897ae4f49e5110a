"""An operation: its plain reference, its backends, why one cannot be used, and samples for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.registry import Registry

Sample = Callable[[Any], tuple[Any, ...]]
"""Takes a dtype, returns arguments for the operation."""


def always_usable() -> None:
    """Return no reason against a backend."""
    return


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute an operation."""

    name: str
    call: Callable[..., Any]
    unusable: Callable[[], str | None] = always_usable
    """Returns the reason why it cannot run here, or None."""
    device: str | None = None
    """Kind of device that it is for; None for any."""


@dataclass(slots=True)
class Op:
    """A named operation. The reference is the specification; backends stand in order of preference."""

    name: str
    reference: Callable[..., Any]
    samples: Sequence[Sample] = ()
    constant: tuple[int, ...] = ()
    """Places of tensors that never get a gradient."""
    backends: list[Backend] = field(default_factory=list[Backend])

    def backend(
        self, name: str, unusable: Callable[[], str | None] = always_usable, device: str | None = None
    ) -> Callable[[Any], Any]:
        """Decorate a function to add it as a backend."""

        def keep(call: Callable[..., Any]) -> Callable[..., Any]:
            self.backends.append(Backend(name, call, unusable, device))
            return call

        return keep

    def choose(self, device: str = "cpu") -> tuple[str, Callable[..., Any], list[str]]:
        """Return name and function of the first usable backend, and why those before it were passed over."""
        reasons: list[str] = []
        for backend in self.backends:
            if backend.device not in (None, device):
                continue
            reason = backend.unusable()
            if reason is None:
                return backend.name, backend.call, reasons
            reasons.append(f"{backend.name}: {reason}")
        return "reference", self.reference, reasons


KERNELS: Registry[Op] = Registry("kernel", "luthier.kernels")


def add(op: Op) -> Op:
    """Put `op` on the kernel shelf."""
    KERNELS.add(op.name, op)
    return op
