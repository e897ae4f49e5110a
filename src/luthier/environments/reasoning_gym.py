"""Endless exercises with verifiers, from reasoning-gym."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from luthier.config.schema import Positive
from luthier.core.errors import ConfigError
from luthier.core.log import first_line
from luthier.core.registry import ENVIRONMENTS, did_you_mean
from luthier.core.types import Example, Message

if TYPE_CHECKING:
    from collections.abc import Sequence


@ENVIRONMENTS.register("reasoning_gym")
@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym:
    """Exercises of one task, the same ones for the same settings; graded by the task's own verifier."""

    reward: ClassVar[str] = "reasoning_gym"
    requires: ClassVar[dict[str, str]] = {"reasoning_gym": "rl"}
    task: str
    """Name of the task, such as chain_sum or countdown."""
    size: Positive = 500
    """Number of exercises."""
    data_seed: Annotated[int, Field(ge=0)] = 42
    """Seed of the exercises."""
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the task itself, such as min_terms; written like {min_terms: 2}."""
    instruction: str = "Give the final answer between <answer> and </answer>."
    """Stands behind each exercise."""
    system: str = ""
    """System text in front of each exercise."""

    def __post_init__(self) -> None:
        for given, meant in {"size": "size", "seed": "data_seed"}.items():
            if given in self.config:
                raise ValueError(f"config: {given} is a setting of the environment; set {meant} instead")

    def examples(self) -> Sequence[Example]:
        """Return the exercises. Raises ConfigError for a task or a setting that reasoning-gym does not know."""
        from reasoning_gym import create_dataset
        from reasoning_gym.factory import DATASETS

        if self.task not in DATASETS:
            hint = did_you_mean(self.task, sorted(DATASETS)) or f"; it has: {', '.join(sorted(DATASETS))}"
            raise ConfigError(f"environment reasoning_gym: unknown task {self.task!r}{hint}")
        try:
            exercises = create_dataset(self.task, **{**self.config, "size": self.size, "seed": self.data_seed})
            return [self._example(number, exercises[number]) for number in range(self.size)]
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            raise ConfigError(f"environment reasoning_gym: {self.task}: {first_line(error)}") from error

    def _example(self, number: int, entry: dict[str, Any]) -> Example:
        asked = f"{entry['question']}\n\n{self.instruction}" if self.instruction else str(entry["question"])
        system = (Message(role="system", content=self.system),) if self.system else ()
        return Example(
            context=(*system, Message(role="user", content=asked)),
            extra={"task": self.task, "entry": entry, "answer": entry["answer"]},
            origin=f"{self.task}:{number}",
        )

    def step(self, example: Example, turns: Sequence[Message]) -> Message | None:
        """Return nothing: an exercise has one answer."""
        return None
