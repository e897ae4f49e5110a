"""Multiple choice: the choice whose letter, or whose text, the model finds most probable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.core.types import Message
from luthier.evaluation.kind import KINDS, Outcome, Task
from luthier.evaluation.logprobs import logprobs
from luthier.evaluation.measure import measured, share
from luthier.evaluation.questions import LETTERS, read_benchmark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.evaluation.kind import Evaluation
    from luthier.evaluation.logprobs import Pair
    from luthier.evaluation.measure import Measure
    from luthier.evaluation.questions import Question
    from luthier.evaluation.subject import Subject


@dataclass(frozen=True, slots=True)
class Words:
    """What stands around a question."""

    intro: str
    answer: str
    """In front of the answer."""
    gap: str
    """Between that and the letter."""


WORDS = {
    "en": Words("The following are multiple choice questions (with answers) about {subject}.\n\n", "Answer:", " "),
    "zh": Words("以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n", "答案：", ""),  # noqa: RUF001
}
"""English as in MMLU's evaluation (github.com/hendrycks/test), Chinese as in C-Eval's (arXiv:2305.08322, appendix)."""


@KINDS.register("choice")
class ChoiceKind:
    """Accuracy on a benchmark in `task`, over all questions, by category and by subject."""

    def __init__(self, task: Task) -> None:
        settings = task.config.evaluate
        if settings.task is None:
            raise ConfigError("choice: task is required: a folder or file of a benchmark", code="config_missing")
        self.settings = settings
        self.benchmark = read_benchmark(settings.task, settings.task_dir, settings.n_shot)
        language = settings.lang if settings.lang != "auto" else "zh" if self.benchmark.is_chinese else "en"
        self.words = WORDS[language]
        self.questions = [q for questions in self.benchmark.asked.values() for q in questions]

    def measure(self, subject: Subject) -> Outcome:
        """Return the accuracies."""
        pairs = [pair for question in self.questions for pair in self._pairs(subject, question)]
        sums = [sum(logp for logp, _ in row) for row in logprobs(subject, pairs)]
        chosen: list[int] = []
        place = 0
        for question in self.questions:
            count = len(question.choices)
            scores = sums[place : place + count]
            if self.settings.choice_score == "text":
                scores = [s / len(choice.encode()) for s, choice in zip(scores, question.choices, strict=True)]
            chosen.append(max(range(count), key=scores.__getitem__))
            place += count
        lines = [
            {"question": q.text, "expected": LETTERS[q.answer], "answer": LETTERS[c], "subject": q.subject,
             "origin": q.where, "right": c == q.answer}
            for q, c in zip(self.questions, chosen, strict=True)
        ]  # fmt: skip
        return Outcome(tuple(self._measures(chosen)), tuple(lines))

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return nothing: differences say it all."""
        del reference, candidate
        return Outcome(())

    def _measures(self, chosen: Sequence[int]) -> list[Measure]:
        right = [(q, c == q.answer) for q, c in zip(self.questions, chosen, strict=True)]
        name = f"choice/{self.benchmark.name}"
        found = [_accuracy(name, right)]
        of = self.benchmark.categories
        found += [
            _accuracy(f"{name}/{category}", [(q, r) for q, r in right if of.get(q.subject) == category])
            for category in sorted(set(of.values()))
        ]
        subjects = dict.fromkeys(q.subject for q, _ in right)
        if len(subjects) > 1:
            for subject in subjects:
                part = [(q, r) for q, r in right if q.subject == subject]
                found.append(_accuracy(f"{name}/{subject}", part, is_detail=True))
        return [each for each in found if each.rows]

    # ---- prompts

    def _pairs(self, subject: Subject, question: Question) -> list[Pair]:
        """Return a beginning and an ending for each choice."""
        endings = [
            LETTERS[place] if self.settings.choice_score == "letter" else choice
            for place, choice in enumerate(question.choices)
        ]
        if self.settings.choice_prompt == "chat":
            beginning = subject.template.prompt(self._messages(question))
            return [(beginning, _tokens(subject, ending)) for ending in endings]
        text = self._text(question)
        beginning = subject.tokenizer(text).input_ids
        return [_parted(subject, beginning, text + self.words.gap + ending) for ending in endings]

    def _intro(self, question: Question) -> str:
        title = self.benchmark.titles.get(question.subject, question.subject.replace("_", " "))
        return self.words.intro.format(subject=title)

    def _text(self, question: Question) -> str:
        shots = [
            f"{self._asked(shot)}{self.words.gap}{self._right(shot)}\n\n"
            for shot in self.benchmark.shots.get(question.subject, ())
        ]
        return self._intro(question) + "".join(shots) + self._asked(question)

    def _messages(self, question: Question) -> list[Message]:
        messages: list[Message] = []
        for shot in self.benchmark.shots.get(question.subject, ()):
            messages.append(Message(role="user", content=self._asked(shot)))
            messages.append(Message(role="assistant", content=self._right(shot)))
        messages.append(Message(role="user", content=self._asked(question)))
        first = messages[0]
        return [Message(role=first.role, content=self._intro(question) + first.content), *messages[1:]]

    def _asked(self, question: Question) -> str:
        choices = (f"{LETTERS[i]}. {choice}" for i, choice in enumerate(question.choices))
        return "\n".join([question.text, *choices, self.words.answer])

    def _right(self, question: Question) -> str:
        letter = self.settings.choice_score == "letter"
        return LETTERS[question.answer] if letter else question.choices[question.answer]


def _accuracy(name: str, right: Sequence[tuple[Question, bool]], *, is_detail: bool = False) -> Measure:
    return measured(name, share([q.where for q, _ in right], [r for _, r in right]), is_detail=is_detail)


def _tokens(subject: Subject, text: str) -> list[int]:
    return subject.tokenizer(text, add_special_tokens=False).input_ids


def _parted(subject: Subject, beginning: Sequence[int], whole: str) -> Pair:
    """Return the tokens of `whole`, parted where those of the beginning end, or where they become others."""
    ids = subject.tokenizer(whole).input_ids
    same = next((i for i, (a, b) in enumerate(zip(beginning, ids, strict=False)) if a != b), len(beginning))
    same = max(1, min(same, len(ids) - 1))
    return ids[:same], ids[same:]
