"""How large a step of rollouts is, and what goes on from step to step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many of what one step has."""

    prompts: int
    """Prompts of all ranks."""
    rows: int
    """Most answers of one forward pass."""
    minibatches: int
    epochs: int

    @property
    def updates(self) -> int:
        """Return the optimizer updates of a step."""
        return self.minibatches * self.epochs


@dataclass(slots=True)
class Carried:
    """What goes on from step to step beside the place in the prompts; plain numbers, kept in the cursor."""

    step: float = 0.0
    flat_steps: float = 0.0
    kl_coef: float = 0.0
    rewards: float = 0.0
    """How many there were so far, their sum, and the sum of their squares."""
    reward_sum: float = 0.0
    reward_squares: float = 0.0

    @property
    def deviation(self) -> float:
        """Return the unbiased deviation of all rewards so far; 1 while there is none."""
        if self.rewards < 2:
            return 1.0
        variance = (self.reward_squares - self.reward_sum**2 / self.rewards) / (self.rewards - 1)
        return variance**0.5 if variance > 0 else 1.0

    def as_numbers(self) -> dict[str, float]:
        """Return the plain form."""
        return {name: float(getattr(self, name)) for name in self.__slots__}
