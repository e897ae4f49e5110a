"""The contract of the ways to grade answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.errors import DependencyError
from luthier.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Example
    from luthier.evaluation.answers import Prediction
    from luthier.evaluation.measure import Measure

METRICS: Registry[Any] = Registry("metric of answers", "luthier.evaluation.metrics")


class Metric(Protocol):
    """Grades answers by the expected ones."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise DependencyError or DataError before anything is loaded, when these rows cannot be graded."""
        ...

    def __call__(self, predictions: Sequence[Prediction]) -> Sequence[Measure]:
        """Return numbers over all answers."""
        ...


def missing_library(what: str, error: ImportError) -> DependencyError:
    """Return what to raise when a library of the extra `evaluate` is missing."""
    return DependencyError(f"{what} needs {error.name}: pip install 'luthier[evaluate]'")
