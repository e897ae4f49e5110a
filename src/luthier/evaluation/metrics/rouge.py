"""ROUGE-1, ROUGE-2 and ROUGE-L as rouge-score computes them, over words of any language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.evaluation.measure import mean, measured
from luthier.evaluation.metric import METRICS, missing_library
from luthier.evaluation.metrics.words import jieba, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Example
    from luthier.evaluation.answers import Prediction
    from luthier.evaluation.measure import Measure

NAMES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


class Words:
    """What rouge-score asks for words."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return words(text)


class Rouge:
    """Means of the F-measures of single answers, from 0 to 100."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise DependencyError when rouge-score or jieba is missing."""
        _scorer()
        jieba()

    def __call__(self, predictions: Sequence[Prediction]) -> Sequence[Measure]:
        """Return generate/rouge_1, rouge_2 and rouge_l."""
        scorer, ids = _scorer(), [p.origin for p in predictions]
        scores = [scorer.score(p.expected, p.answer) for p in predictions]
        return [
            measured(f"generate/{shown}", mean(ids, [100 * float(score[name].fmeasure) for score in scores]))
            for name, shown in NAMES.items()
        ]


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing_library("the metric rouge", error) from error
    return RougeScorer(list(NAMES), tokenizer=Words())


METRICS.add("rouge", Rouge())
