"""Scores of a reward server: whole texts to an address (POST), one number each back."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from luthier.config.rollout import is_address
from luthier.config.values import Positive
from luthier.core.errors import ConfigError
from luthier.core.registry import REWARDS
from luthier.rewards.endpoint import post

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from luthier.core.types import Answer


@REWARDS.register("scores")
@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The number that a reward server gives prompt and answer; an answer whose request fails has no reward.

    It is sent {"model": "model", "messages": [texts]} and answers {"scores": [numbers]}, as LLaMA-Factory's
    `reward_model_type: api` has it. A text is what the policy saw and wrote, with its template and special tokens;
    outside of training, where nobody has those, the messages and the answer with a blank line between them.
    """

    may_hang: ClassVar[bool] = True
    reads_written: ClassVar[bool] = True
    url: str
    """Address that scores are asked of, such as http://127.0.0.1:8000/v1/score."""
    api_key_env: str = ""
    """Environment variable with the key; empty sends none."""
    together: Positive = 64
    """Most texts of one request."""
    time_limit_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest time for the answers of a step; a failed request is not repeated."""

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise ValueError(f"url: expected an address such as http://127.0.0.1:8000/v1/score, found {self.url!r}")

    def resolved(self, folder: Path | None) -> Scores:
        """Return the reward itself. Raises ConfigError when the variable with the key is not set."""
        del folder
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ConfigError(f"reward scores: the environment variable {self.api_key_env} (api_key_env) is not set")
        return self

    def __call__(self, answer: Answer) -> float:
        """Return the score of one answer. Raises what the request raises, and ValueError for a reply that is none."""
        return self._asked([_text(answer)], self._deadline())[0]

    def many(self, answers: Sequence[Answer]) -> list[float | Exception]:
        """Return the score of each answer, or why its request has none."""
        deadline, found = self._deadline(), list[float | Exception]()
        for first in range(0, len(answers), self.together):
            texts = [_text(answer) for answer in answers[first : first + self.together]]
            try:
                found += self._asked(texts, deadline)
            except (ValueError, OSError) as error:
                found += [error] * len(texts)
        return found

    def _deadline(self) -> float:
        return time.monotonic() + 0.9 * self.time_limit_seconds  # at the limit itself nothing that came is kept

    def _asked(self, texts: Sequence[str], deadline: float) -> list[float]:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(f"{self.url} took longer than {self.time_limit_seconds:g} s for the answers before")
        body = {"model": "model", "messages": list(texts)}
        reply = post(self.url, body, key_variable=self.api_key_env, seconds=seconds)
        scores: Any = reply.get("scores") if isinstance(reply, dict) else None
        if not isinstance(scores, list):
            raise ValueError(f'{self.url} answers {str(reply)[:200]!r}; expected {{"scores": [...]}}')
        if len(scores) != len(texts):
            raise ValueError(f"{self.url} gives {len(scores)} scores to {len(texts)} texts")
        wrong = [each for each in scores if not _is_number(each)]
        if wrong:
            raise ValueError(f"{self.url} gives a score that is no number: {str(wrong[0])[:60]!r}")
        return [float(each) for each in scores]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(answer: Answer) -> str:
    said = [message.content for message in answer.example.context]
    return answer.written or "\n\n".join([*said, answer.completion.text])
