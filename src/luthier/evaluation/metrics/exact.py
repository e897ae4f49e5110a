"""Equal texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.evaluation.measure import measured, share
from luthier.evaluation.metric import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Example
    from luthier.evaluation.answers import Prediction
    from luthier.evaluation.measure import Measure


class Exact:
    """The share of answers that are the expected text, blanks around both left out."""

    def check(self, examples: Sequence[Example]) -> None:
        """Any row will do."""

    def __call__(self, predictions: Sequence[Prediction]) -> Sequence[Measure]:
        """Return generate/exact_match."""
        ids = [p.origin for p in predictions]
        return [measured("generate/exact_match", share(ids, [p.is_exact for p in predictions]))]


METRICS.add("exact", Exact())
