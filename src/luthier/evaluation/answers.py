"""Answers to held-out rows, given once for every kind of evaluation that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import DataError
from luthier.core.log import logger
from luthier.evaluation.measure import unique
from luthier.evaluation.rows import expected_of

if TYPE_CHECKING:
    from luthier.core.types import Sampling
    from luthier.evaluation.rows import HeldOut
    from luthier.evaluation.subject import Subject


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer beside the expected one."""

    question: str
    expected: str
    answer: str
    origin: str
    """file:line of the row."""
    finish_reason: str = "stop"
    """stop, or length for an answer that was cut off."""
    tokens: int = 0
    """Of the answer, its end included."""

    @property
    def is_exact(self) -> bool:
        """Tell whether both texts are equal but for blanks around them."""
        return self.answer.strip() == self.expected.strip()


def answer(subject: Subject, rows: HeldOut, how: Sampling) -> list[Prediction]:
    """Return one prediction for each row with an answer, in order.

    Raises DataError for a prompt that leaves no room for an answer, unless `too_long` says to skip such rows.
    """
    if "answers" not in subject.memo:
        subject.memo["answers"] = _answer(subject, rows, how)
    return subject.memo["answers"]


def _answer(subject: Subject, rows: HeldOut, how: Sampling) -> list[Prediction]:
    prompts, kept, too_long = [], [], 0
    for example in rows.with_answers:
        tokens = subject.template.prompt(example.context, example.tools)
        if len(tokens) < subject.max_tokens:
            prompts.append(tokens)
            kept.append(example)
        elif rows.config.data.too_long == "skip":
            too_long += 1
        else:
            raise DataError(
                f"{example.origin} has a prompt of {len(tokens)} tokens, but {subject.name} sees at most "
                f"{subject.max_tokens} with the answer; take the row out, or set too_long: skip",
                code="data_too_long",
            )
    if too_long:
        logger.warning("evaluation: %d rows with too long prompts are skipped (too_long: skip)", too_long)
    completions = subject.engine.generate(prompts, how)
    origins = unique([example.origin for example in kept])
    return [
        Prediction(
            example.context[-1].content,
            expected_of(example) or "",
            given[0].text,
            origin,
            given[0].finish_reason,
            len(given[0].tokens),
        )
        for example, given, origin in zip(kept, completions, origins, strict=True)
    ]
