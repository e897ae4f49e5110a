"""What a run over rollouts is graded by, built from the settings alone: mistakes are found before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.core.protocols import Environment
from luthier.environments.build import build_environment
from luthier.rewards.build import build_rewards
from luthier.rewards.grading import NamedReward

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Judges:
    """The rewards of the settings, and the environment that they name."""

    rewards: list[NamedReward]
    """All but a reward model."""
    environment: Environment | None


def judges_of(config: RunConfig) -> Judges | None:
    """Return what grades answers; None for objectives that learn from rows.

    Raises ConfigError for everything that is wrong with rewards and environment, and DependencyError for a package that
    is missing.
    """
    if "rollouts" not in config.objective.needs:
        return None
    rollout = config.rollout
    environment = None if rollout.environment is None else build_environment(rollout.environment)
    rewards = build_rewards(rollout.rewards, environment)
    if not rewards and rollout.reward_model is None:
        raise ConfigError(
            "nothing grades the answers: set rewards (see docs/rewards.md), reward_model, or an environment that "
            "brings a reward",
            code="config_missing",
        )
    if environment is not None and rollout.max_turns == 1:
        logger.info("the environment only brings prompts: with max_turns: 1 it is not asked about answers")
    return Judges(rewards, environment)
