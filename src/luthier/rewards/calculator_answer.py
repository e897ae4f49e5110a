"""Does the episode end with the right number? What the calculator environment is graded by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.core.registry import REWARDS
from luthier.rewards.exact_match import number_in
from luthier.rewards.texts import last_between, last_turn, text_column

if TYPE_CHECKING:
    from luthier.core.types import Answer


@REWARDS.register("calculator_answer")
@dataclass(frozen=True, kw_only=True, slots=True)
class CalculatorAnswer:
    """1 where the number between <answer> and </answer> in the last turn is that of the column answer, 0 elsewhere."""

    may_hang: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("answer",)
    tool_bonus: Annotated[float, Field(ge=0)] = 0.0
    """Added where the calculator was asked and had an answer: a first step for models that never ask it."""

    def __call__(self, answer: Answer) -> float | None:
        """Return the reward of an episode; None where the column is empty."""
        expected = text_column(answer.example, "answer")
        if expected is None:
            return None
        said = last_between(last_turn(answer), "<answer>", "</answer>")
        right, given = number_in(expected), None if said is None else number_in(said)
        told = [turn.content for turn in answer.turns if turn.role != "assistant"]
        used = any(not content.removeprefix("<result>").startswith("error:") for content in told)
        return float(given is not None and given == right) + (self.tool_bonus if used else 0.0)
