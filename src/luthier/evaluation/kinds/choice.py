"""Multiple choice: the choice whose letter, or whose text, the model finds most probable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError, DataError
from luthier.evaluation.kind import KINDS, Outcome, Task
from luthier.evaluation.logprobs import Pair, logprobs
from luthier.evaluation.measure import measured, share, unique
from luthier.evaluation.prompts import Prompts, words_for
from luthier.evaluation.questions import LETTERS, Question, read_benchmark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.evaluation.kind import Evaluation, Line
    from luthier.evaluation.measure import Measure
    from luthier.evaluation.subject import Subject


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as a model reads it."""

    pairs: list[Pair]
    """A beginning and an ending for each choice."""
    dropped: int
    """Shots that its context had no room for."""


@KINDS.register("choice")
class ChoiceKind:
    """Accuracy on a benchmark in `task`, over all questions, by category and by subject."""

    def __init__(self, task: Task) -> None:
        settings = task.config.evaluate
        if settings.task is None:
            raise ConfigError("choice: task is required: a folder or file of a benchmark", code="config_missing")
        self.settings = settings
        self.benchmark = read_benchmark(settings.task, settings.task_dir, settings.n_shot)
        words = words_for(self.benchmark, settings.lang)
        self.prompts = Prompts(self.benchmark, words, by_text=settings.choice_score == "text")
        self.questions = self.benchmark.questions
        self.ids = unique([question.where for question in self.questions])

    def measure(self, subject: Subject) -> Outcome:
        """Return the accuracies."""
        asked = [self._asked(subject, question) for question in self.questions]
        sums = iter([
            sum(logp for logp, _ in row) for row in logprobs(subject, [pair for each in asked for pair in each.pairs])
        ])  # fmt: skip
        scores = [[next(sums) for _ in question.choices] for question in self.questions]
        if self.prompts.by_text:
            scores = [
                [score / len(choice.encode()) for score, choice in zip(row, question.choices, strict=True)]
                for row, question in zip(scores, self.questions, strict=True)
            ]
        chosen = [max(range(len(row)), key=row.__getitem__) for row in scores]
        return Outcome(
            tuple(self._measures([c == q.answer for q, c in zip(self.questions, chosen, strict=True)])),
            tuple(self._line(*each) for each in zip(self.ids, self.questions, chosen, scores, strict=True)),
            tuple(self._notes(subject, [each.dropped for each in asked])),
        )

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return nothing: differences say it all."""
        del reference, candidate
        return Outcome(())

    # ---- prompts

    def _asked(self, subject: Subject, question: Question) -> _Asked:
        """Return the question with as many shots as there is room for."""
        shots = self.prompts.shots(question)
        for count in range(len(shots), -1, -1):
            pairs = self._pairs(subject, question, shots[:count])
            if max(len(beginning) + len(ending) for beginning, ending in pairs) <= subject.max_tokens:
                return _Asked(pairs, len(shots) - count)
        raise DataError(
            f"{question.where} [question] is longer than the {subject.max_tokens} tokens that {subject.name} sees; "
            "take it out",
            code="data_too_long",
        )

    def _pairs(self, subject: Subject, question: Question, shots: Sequence[Question]) -> list[Pair]:
        endings = self.prompts.endings(question)
        if self.settings.choice_prompt == "chat":
            beginning = subject.template.prompt(self.prompts.messages(question, shots))
            return [(beginning, subject.tokenizer(each, add_special_tokens=False).input_ids) for each in endings]
        text = self.prompts.text(question, shots)
        beginning = subject.tokenizer(text).input_ids
        return [_parted(subject, beginning, text + self.prompts.words.gap + ending) for ending in endings]

    # ---- results

    def _measures(self, right: Sequence[bool]) -> list[Measure]:
        name, of = f"choice/{self.benchmark.name}", self.benchmark.categories
        found = [self._accuracy(name, right, range(len(right)))]
        for category in dict.fromkeys(c for q in self.questions for c in of.get(q.subject, ())):
            rows = [i for i, q in enumerate(self.questions) if category in of.get(q.subject, ())]
            found.append(self._accuracy(f"{name}/{category}", right, rows))
        if len(self.benchmark.asked) > 1:
            for each in self.benchmark.asked:
                rows = [i for i, q in enumerate(self.questions) if q.subject == each]
                found.append(self._accuracy(f"{name}/{each}", right, rows, is_detail=True))
        return found

    def _accuracy(self, name: str, right: Sequence[bool], rows: Sequence[int], *, is_detail: bool = False) -> Measure:
        return measured(name, share([self.ids[i] for i in rows], [right[i] for i in rows]), is_detail=is_detail)

    def _line(self, origin: str, question: Question, chosen: int, scores: Sequence[float]) -> Line:
        return {
            "question": question.text,
            "choices": question.choices,
            "expected": LETTERS[question.answer],
            "answer": LETTERS[chosen],
            "right": chosen == question.answer,
            "scores": [round(score, 4) for score in scores],
            "subject": question.subject,
            "origin": origin,
        }

    def _notes(self, subject: Subject, dropped: Sequence[int]) -> list[str]:
        notes: list[str] = []
        if some := sum(count > 0 for count in dropped):
            notes.append(f"{subject.name}: {some} questions of {self.benchmark.name} had no room for all shots; "
                         f"{sum(dropped)} shots were left out")  # fmt: skip
        if self.settings.n_shot and not self.benchmark.shots:
            notes.append(f"{self.benchmark.name}: no dev questions beside the file, so they were asked without shots")
        return notes


def _parted(subject: Subject, beginning: Sequence[int], whole: str) -> Pair:
    """Return the tokens of `whole`, parted where those of the beginning end, or where they become others."""
    ids = subject.tokenizer(whole).input_ids
    same = next((i for i, (a, b) in enumerate(zip(beginning, ids, strict=False)) if a != b), len(beginning))
    same = max(1, min(same, len(ids) - 1))
    return ids[:same], ids[same:]
