"""Generate answers for held-out rows and compare them with the expected ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.protocols import Engine
    from luthier.core.types import Example, Sampling
    from luthier.data.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer beside the expected one."""

    question: str
    expected: str
    answer: str
    origin: str

    @property
    def is_exact(self) -> bool:
        """Tell whether both texts are equal but for blanks around them."""
        return self.answer.strip() == self.expected.strip()


def predict(examples: Sequence[Example], *, template: ChatTemplate, engine: Engine, how: Sampling) -> list[Prediction]:
    """Return one prediction for each example, in order."""
    prompts = [template.prompt(example.context, example.tools) for example in examples]
    completions = engine.generate(prompts, how)
    return [
        Prediction(example.context[-1].content, example.endings[0][-1].content, answers[0].text, example.origin)
        for example, answers in zip(examples, completions, strict=True)
    ]


def exact_match(predictions: Sequence[Prediction]) -> float:
    """Return the share of exact answers."""
    return sum(p.is_exact for p in predictions) / max(1, len(predictions))


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927, as in Brown, Cai and DasGupta 2001).

    >>> [round(x, 3) for x in wilson_interval(0.9, 100)]
    [0.826, 0.945]
    """
    if count == 0:
        return 0.0, 1.0
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
