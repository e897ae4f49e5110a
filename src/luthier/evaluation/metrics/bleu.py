"""BLEU and chrF as sacrebleu computes them, over the whole set of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.evaluation.intervals import Series
from luthier.evaluation.measure import mean, measured
from luthier.evaluation.metric import METRICS, missing_library
from luthier.evaluation.metrics.words import is_chinese

if TYPE_CHECKING:
    from luthier.core.types import Example
    from luthier.evaluation.answers import Prediction
    from luthier.evaluation.measure import Measure


@dataclass(frozen=True, slots=True)
class Corpus:
    """A score made of sums of n-gram counts over all answers.

    `make` returns sacrebleu's metric for the texts at hand.
    """

    name: str
    make: Callable[[Sequence[str]], Any]

    def check(self, examples: Sequence[Example]) -> None:
        """Raise DependencyError when sacrebleu is missing."""
        _sacrebleu(self.name)

    def __call__(self, predictions: Sequence[Prediction]) -> Sequence[Measure]:
        """Return generate/NAME, from 0 to 100."""
        metric = self.make([p.expected for p in predictions])
        expected = [[p.expected for p in predictions]]
        counts = np.asarray(metric._extract_corpus_statistics([p.answer for p in predictions], expected))

        def score(sums_BK: np.ndarray) -> np.ndarray:
            whole_BK = np.rint(sums_BK).astype(int)
            return np.array([_value(metric, row) for row in whole_BK])

        series = Series(tuple(p.origin for p in predictions), counts.astype(np.float64), score)
        return [measured(f"generate/{self.name}", series)]


def _value(metric: Any, sums_K: np.ndarray) -> float:
    return float(metric._compute_score_from_stats(sums_K.tolist()).score)


def _sacrebleu(what: str) -> Any:
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise missing_library(f"the metric {what}", error) from error
    return sacrebleu.metrics


def _bleu(texts: Sequence[str]) -> Any:
    """Return BLEU-4 with sacrebleu's tokenizer for the language: 13a, or zh where most texts are Chinese."""
    chinese = sum(map(is_chinese, texts)) * 2 > len(texts)
    return _sacrebleu("bleu").BLEU(tokenize="zh" if chinese else "13a")


class BleuByCharacter:
    """Mean of sentence BLEU-4 over characters, smoothed: what LLaMA-Factory reports as bleu-4."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise DependencyError when nltk, which comes with rouge-score, is missing."""
        _nltk()

    def __call__(self, predictions: Sequence[Prediction]) -> Sequence[Measure]:
        """Return generate/bleu_characters, from 0 to 100."""
        bleu = _nltk()
        smooth = bleu.SmoothingFunction().method3
        values = [
            100 * float(bleu.sentence_bleu([list(p.expected)], list(p.answer), smoothing_function=smooth))
            if p.answer and p.expected
            else 0.0
            for p in predictions
        ]
        return [measured("generate/bleu_characters", mean([p.origin for p in predictions], values))]


def _nltk() -> Any:
    try:
        from nltk.translate import bleu_score
    except ImportError as error:
        raise missing_library("the metric bleu_characters", error) from error
    return bleu_score


METRICS.add("bleu", Corpus("bleu", _bleu))
METRICS.add("bleu_characters", BleuByCharacter())
METRICS.add("chrf", Corpus("chrf", lambda texts: _sacrebleu("chrf").CHRF()))
