"""Multiple-choice questions as the benchmarks publish them: the words around a question, and the shots in front.

MMLU: hendrycks/test, evaluate.py. C-Eval: arXiv:2305.08322, appendix, answers only. CMMLU: haonan-li/CMMLU,
src/mp_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.types import Message
from luthier.evaluation.questions import LETTERS, Benchmark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.evaluation.questions import Question


@dataclass(frozen=True, slots=True)
class Words:
    """What stands around a question."""

    intro: str
    answer: str
    """In front of the answer."""
    gap: str = ""
    """Between that and the letter."""
    question: str = ""
    """In front of the question."""


ENGLISH = Words(
    intro="The following are multiple choice questions (with answers) about {subject}.\n\n", answer="Answer:", gap=" "
)
CHINESE = Words(intro="以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n", answer="答案：")  # noqa: RUF001
OF_CMMLU = Words(
    intro="以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n",  # noqa: RUF001
    answer="答案是：",  # noqa: RUF001
    question="题目：",  # noqa: RUF001
)
_BY_SUITE = {"mmlu": ENGLISH, "ceval": CHINESE, "cmmlu": OF_CMMLU}
_BY_LANGUAGE = {"en": ENGLISH, "zh": CHINESE}


def words_for(benchmark: Benchmark, language: str) -> Words:
    """Return the words that a published benchmark comes with, or else those of a language; "auto" looks at the rows."""
    chinese = benchmark.is_chinese
    if benchmark.suite is not None and (language == "auto" or (language == "zh") == chinese):
        return _BY_SUITE[benchmark.suite.name]
    return _BY_LANGUAGE[language if language != "auto" else "zh" if chinese else "en"]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Puts questions into words; `by_text` answers with whole choices instead of letters."""

    benchmark: Benchmark
    words: Words
    by_text: bool = False

    def endings(self, question: Question) -> list[str]:
        """Return what may follow the prompt, one for each choice."""
        return [self._answer(question, place) for place in range(len(question.choices))]

    def shots(self, question: Question) -> Sequence[Question]:
        """Return the answered questions that may stand in front."""
        return self.benchmark.shots.get(question.subject, ())

    def text(self, question: Question, shots: Sequence[Question]) -> str:
        """Return the prompt as one text."""
        shown = [f"{self._asked(shot)}{self.words.gap}{self._answer(shot, shot.answer)}\n\n" for shot in shots]
        return self._intro(question) + "".join(shown) + self._asked(question)

    def messages(self, question: Question, shots: Sequence[Question]) -> list[Message]:
        """Return the prompt as a conversation, shots as earlier turns of it."""
        messages: list[Message] = []
        for shot in shots:
            messages.append(Message(role="user", content=self._asked(shot)))
            messages.append(Message(role="assistant", content=self._answer(shot, shot.answer)))
        messages.append(Message(role="user", content=self._asked(question)))
        first = messages[0]
        return [Message(role=first.role, content=self._intro(question) + first.content), *messages[1:]]

    def _intro(self, question: Question) -> str:
        title = self.benchmark.titles.get(question.subject, question.subject.replace("_", " "))
        return self.words.intro.format(subject=title)

    def _asked(self, question: Question) -> str:
        choices = (f"{LETTERS[place]}. {choice}" for place, choice in enumerate(question.choices))
        return "\n".join([self.words.question + question.text, *choices, self.words.answer])

    def _answer(self, question: Question, place: int) -> str:
        return question.choices[place] if self.by_text else LETTERS[place]
