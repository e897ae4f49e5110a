"""The verifiers of reasoning-gym's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.registry import REWARDS
from luthier.rewards.texts import column, last_between

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.types import Answer


@cache
def _verifier(task: str) -> Callable[..., Any]:
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(task)


@REWARDS.register("reasoning_gym")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym:
    """What the task's own verifier says, 0 to 1; reads the columns task and entry of the environment of this name."""

    may_hang: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("task", "entry")
    requires: ClassVar[dict[str, str]] = {"reasoning_gym": "rl"}
    tag: str = "answer"
    """The answer stands between <tag> and </tag>; the last one counts."""
    require_tag: bool = False
    """Without the tag an answer is wrong; otherwise all of its text is taken."""

    def __call__(self, answer: Answer) -> float:
        """Return the score of the verifier."""
        task, entry = column(answer.example, "task"), column(answer.example, "entry")
        text = answer.completion.text
        found = last_between(text, f"<{self.tag}>", f"</{self.tag}>")
        if found is None and self.require_tag:
            return 0.0
        return float(_verifier(str(task))(answer=(text if found is None else found).strip(), entry=entry))
