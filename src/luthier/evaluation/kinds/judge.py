"""Which of two answers is better, in the opinion of a model behind an OpenAI-compatible endpoint.

Each pair is judged in both orders, because judges favour a place (Zheng et al. 2023, arXiv:2306.05685, section 3.3);
where the orders disagree, it is a tie.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from luthier.config.parts import make
from luthier.core.errors import ConfigError
from luthier.core.log import first_line
from luthier.core.progress import within
from luthier.evaluation.answers import answer
from luthier.evaluation.kind import KINDS, Line, Outcome, Task
from luthier.evaluation.measure import mean, measured, share
from luthier.evaluation.rows import need_rows
from luthier.rewards.endpoint import ask

if TYPE_CHECKING:
    from luthier.evaluation.answers import Prediction
    from luthier.evaluation.kind import Evaluation
    from luthier.evaluation.subject import Subject

PROMPT = """You compare two answers to one question. Judge whether they are right, complete and clear; length alone and
the order in which they stand do not matter.

Question:
{question}

Answer A:
{a}

Answer B:
{b}

End with a line that says which is better: Verdict: A, Verdict: B, or Verdict: tie"""
_VERDICT = re.compile(r"(?i)verdict\s*:\s*\**\s*(A|B|tie)\b")
_PLACE = re.compile(r"\{(question|a|b)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PairJudge:
    """The judge of `eval_judge`."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^/]")]
    """Address of the interface, such as http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model there."""
    prompt: str = PROMPT
    """What it is asked; {question}, {a} and {b} are filled in."""
    api_key_env: str = ""
    """Environment variable with the key; empty sends none."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of a reply."""
    time_limit_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one reply."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests at the same time."""

    def verdict(self, question: str, a: str, b: str) -> float:
        """Return 1 where A is better, 0 where B is, 0.5 for a tie. Raises ValueError for a reply without a verdict."""
        parts = {"question": question, "a": a, "b": b}
        said = ask(
            self.base_url,
            self.model,
            _PLACE.sub(lambda place: parts[place[1]], self.prompt),
            key_variable=self.api_key_env,
            max_tokens=self.max_tokens,
            seconds=self.time_limit_seconds,
        )
        found = _VERDICT.findall(said)
        if not found:
            raise ValueError(f"the judge gave no verdict: {said[-200:]!r}")
        return {"a": 1.0, "b": 0.0, "tie": 0.5}[found[-1].lower()]


@KINDS.register("judge")
class JudgeKind:
    """Win rate against the model that each one is compared with."""

    def __init__(self, task: Task) -> None:
        if task.held_out is None:
            raise need_rows(task.config, "judge")
        self.rows, self.how = task.held_out, task.config.generate
        self.judge = _judge_of(task)

    def measure(self, subject: Subject) -> Outcome:
        """Answer the rows; they are judged once there are two models."""
        answer(subject, self.rows, self.how)
        return Outcome(())

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return the win rate of the candidate, ties counted half, and how often both orders agreed."""
        before = {p.origin: p for p in reference.predictions}
        pairs = [(p, before[p.origin]) for p in candidate.predictions if p.origin in before]
        with ThreadPoolExecutor(self.judge.parallel) as pool:
            lines = list[Line]()
            for line in pool.map(lambda pair: self._judged(*pair), pairs):
                lines.append(line)
                within(len(lines), len(pairs))
        judged = [line for line in lines if line["score"] is not None]
        notes: list[str] = []
        if failed := [line for line in lines if line["score"] is None]:
            first = failed[0]["error"]
            notes.append(f"judge: {len(failed)} of {len(lines)} pairs could not be judged and are left out; "
                         f"first: {first}")  # fmt: skip
        if not judged:
            return Outcome((), tuple(lines), tuple(notes))
        ids, orders = [line["origin"] for line in judged], [line["orders"] for line in judged]
        wins = measured("judge/win_rate", mean(ids, [line["score"] for line in judged]))
        agree = measured("judge/orders_agree", share(ids, [a == b for a, b in orders]), better="neither")
        notes.append(f"judge: win rates are of {candidate.model} against {reference.model}, ties counted half; "
                     "0.5 is no difference")  # fmt: skip
        return Outcome((wins, agree), tuple(lines), tuple(notes))

    def _judged(self, own: Prediction, other: Prediction) -> Line:
        line: Line = {"origin": own.origin, "question": own.question, "answer": own.answer, "other": other.answer}
        try:
            first = self.judge.verdict(own.question, own.answer, other.answer)
            second = 1.0 - self.judge.verdict(own.question, other.answer, own.answer)
        except Exception as error:  # noqa: BLE001  whatever an endpoint does is counted and shown
            return {**line, "score": None, "error": first_line(error)}
        return {**line, "score": first if first == second else 0.5, "orders": [first, second]}


def _judge_of(task: Task) -> PairJudge:
    given = task.config.evaluate.eval_judge
    if not given:
        raise ConfigError("judge: eval_judge is required: {base_url: …, model: …}", code="config_missing")
    judge = make(PairJudge, given, "eval_judge")
    if "{a}" not in judge.prompt or "{b}" not in judge.prompt:
        raise ConfigError("eval_judge: prompt needs {a} and {b}, the places of the answers")
    if judge.api_key_env and not os.environ.get(judge.api_key_env):
        raise ConfigError(f"eval_judge: the environment variable {judge.api_key_env} (api_key_env) is not set")
    return judge
