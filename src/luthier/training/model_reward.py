"""A reward model as one of the rewards: all answers of a step at once, prompts computed once for their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.models.reward_model import RewardModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Answer


@dataclass(frozen=True, slots=True)
class ModelReward:
    """Grades by tokens where the reward model has the policy's, otherwise through text."""

    model: RewardModel
    tokenizer: Any
    """The policy's."""

    def __call__(self, answer: Answer) -> float | None:
        """Return the reward of one answer."""
        return self.many([answer])[0]

    def many(self, answers: Sequence[Answer]) -> list[float | None]:
        """Return the reward of each answer."""
        completions = [answer.completion for answer in answers]
        if self.model.takes_tokens_of(self.tokenizer):
            found = self.model.score([c.prompt_tokens for c in completions], [c.tokens for c in completions])
        else:
            found = self.model.score_text(
                [(*answer.example.context, *answer.turns[:-1]) for answer in answers],
                [completion.text for completion in completions],
                [answer.example.tools for answer in answers],
            )
        return found.tolist()
