"""What a run over rollouts is graded by, built from the settings alone: mistakes are found before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import logger
from luthier.core.protocols import Environment
from luthier.environments.build import build_environment
from luthier.rewards.build import build_rewards
from luthier.rewards.grading import NamedReward, distinct
from luthier.rewards.scores import Scores

if TYPE_CHECKING:
    from luthier.config.rollout import RolloutConfig
    from luthier.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Judges:
    """The rewards of the settings, and the environment that they name."""

    rewards: list[NamedReward]
    """All but a reward model that is loaded."""
    environment: Environment | None


def judges_of(config: RunConfig) -> Judges | None:
    """Return what grades answers; None for objectives that learn from rows.

    Raises ConfigError for everything that is wrong with rewards and environment, ModelError for an adapter of another
    model than the reward model, and DependencyError for a package that is missing.
    """
    if "rollouts" not in config.objective.needs:
        return None
    rollout = config.rollout
    environment = None if rollout.environment is None else build_environment(rollout.environment)
    _check_reward_model(rollout)
    rewards = build_rewards(rollout.rewards, environment)
    if rollout.reward_address is not None:
        asked = Scores(url=rollout.reward_address)
        rewards = distinct([*rewards, NamedReward("reward_model", rollout.reward_model_weight, asked)])
    if not rewards and rollout.reward_model is None:
        raise ConfigError(
            "nothing grades the answers: set rewards (see docs/rewards.md), reward_model, or an environment that "
            "brings a reward",
            code="config_missing",
        )
    if environment is not None and rollout.max_turns == 1:
        logger.info("the environment only brings prompts: with max_turns: 1 it is not asked about answers")
    return Judges(rewards, environment)


def _check_reward_model(rollout: RolloutConfig) -> None:
    """Raise ConfigError or ModelError when what names the reward model contradicts itself."""
    named, adapters, kind = rollout.reward_model, rollout.reward_model_adapters, rollout.reward_model_type
    is_asked = rollout.reward_address is not None
    if kind == "api" and not is_asked:
        raise ConfigError(
            "reward_model_type: api asks a server: set reward_model to its address, such as "
            f"http://127.0.0.1:8000/v1/score (found {named or 'none'})"
        )
    if is_asked and kind not in (None, "api"):
        raise ConfigError(
            f"reward_model is an address ({named}), but reward_model_type: {kind} is of folders; set it to api"
        )
    if not adapters:
        return
    if named is None or is_asked:
        raise ConfigError(
            f"reward_model_adapters ({', '.join(adapters)}) needs reward_model: the model that the adapter was trained "
            f"on (found {named or 'none'}); or name the adapter's folder as reward_model"
        )
    if len(adapters) > 1:
        raise ConfigError(
            f"reward_model_adapters names {len(adapters)} folders ({', '.join(adapters)}); one is used at a time"
        )
    for adapter in adapters:
        _check_base(named, adapter)


def _check_base(named: str, adapter: str) -> None:
    """Raise ModelError when an adapter was trained on another model than the one that stands beside it."""
    from luthier.models.load import resolve  # needs torch, which reading settings does not

    wanted, files = resolve(named), resolve(adapter)
    if not files.adapters:
        raise ModelError(
            f"reward_model_adapters: {adapter} holds no adapter (adapter_config.json)", code="model_adapter"
        )
    if Path(files.base).absolute() == Path(wanted.base).absolute():
        return
    theirs, ours = (each.public_base.rstrip("/") for each in (files, wanted))
    if theirs.rpartition("/")[2] != ours.rpartition("/")[2]:
        raise ModelError(
            f"reward_model_adapters: {adapter} was trained on {theirs}, but reward_model is {named}; name {theirs}, or "
            "the adapter's folder alone as reward_model",
            code="model_adapter",
        )
    logger.info("reward model: %s is loaded from where its adapter found it: %s", named, theirs)
