"""Another model's opinion, over the usual HTTP interface (POST /chat/completions)."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.config.schema import Positive
from luthier.core.errors import ConfigError
from luthier.core.registry import REWARDS
from luthier.rewards.endpoint import ask
from luthier.rewards.regex import check_pattern
from luthier.rewards.texts import text_column

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.core.types import Answer

PROMPT = """You grade an answer to a question. Think about whether it is right, complete and clear.

Question:
{question}

Answer:
{answer}

End with a line that holds a whole number from 0 (useless) to 10 (perfect): Score: N"""
_PLACE = re.compile(r"\{(question|answer|reference)\}")


@REWARDS.register("judge")
@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """The score that a model gives, brought to 0 .. 1; an answer whose judgement fails has no reward."""

    may_hang: ClassVar[bool] = True
    base_url: str
    """Address of the interface, such as http://127.0.0.1:8000/v1."""
    model: str
    """Name of the model there."""
    prompt: str = PROMPT
    """What the model is asked; {question}, {answer} and {reference} are filled in."""
    reference_column: str = ""
    """Column that {reference} stands for."""
    api_key_env: str = ""
    """Environment variable with the key; empty sends none."""
    score_pattern: str = r"(?i)score\s*:\s*\**\s*(-?\d+(?:\.\d+)?)"
    """The last match in the reply is the score: its first group, or all of it."""
    lowest: float = 0.0
    """Score that becomes 0."""
    highest: float = 10.0
    """Score that becomes 1."""
    max_tokens: Positive = 512
    """Most tokens of a reply."""
    time_limit_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for one answer; a failed request is not repeated."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests at the same time."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]", self.base_url):
            raise ValueError(f"base_url: expected an address such as http://127.0.0.1:8000/v1, found {self.base_url!r}")
        check_pattern(self.score_pattern, "score_pattern")
        if self.highest <= self.lowest:
            raise ValueError("highest must be above lowest")
        if "{answer}" not in self.prompt:
            raise ValueError("prompt needs {answer}, the place of what is graded")
        if ("{reference}" in self.prompt) != bool(self.reference_column):
            raise ValueError("reference_column and {reference} in the prompt go together")

    @property
    def columns(self) -> tuple[str, ...]:
        """Return what a row must have."""
        return (self.reference_column,) if self.reference_column else ()

    def resolved(self, folder: Path | None) -> Judge:
        """Return the reward itself. Raises ConfigError when the variable with the key is not set."""
        del folder
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ConfigError(f"reward judge: the environment variable {self.api_key_env} (api_key_env) is not set")
        return self

    def __call__(self, answer: Answer) -> float | None:
        """Return a number in 0 .. 1. Raises what the request raises, and ValueError for a reply without a score."""
        reference = text_column(answer.example, self.reference_column) if self.reference_column else ""
        if reference is None:
            return None
        parts = {
            "question": "\n\n".join(message.content for message in answer.example.context),
            "answer": answer.completion.text,
            "reference": reference,
        }
        said = ask(
            self.base_url,
            self.model,
            _PLACE.sub(lambda place: parts[place[1]], self.prompt),
            key_variable=self.api_key_env,
            max_tokens=self.max_tokens,
            seconds=0.9 * self.time_limit_seconds,  # at the limit itself all other requests end too
        )
        scores = list(re.finditer(self.score_pattern, said))
        if not scores:
            raise ValueError(f"the judge gave no score: {said[-200:]!r}")
        score = float((scores[-1][1] if scores[-1].re.groups else scores[-1][0]) or "nan")
        if math.isnan(score):
            raise ValueError(f"the judge's score is no number: {said[-200:]!r}")
        return min(1.0, max(0.0, (score - self.lowest) / (self.highest - self.lowest)))
