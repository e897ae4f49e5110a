"""Groups of answers whose rewards do not differ, and what is worth seeing of all groups of a step."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import TrainingError
from luthier.core.log import logger, say_once

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from luthier.config.rollout import RolloutConfig
    from luthier.core.protocols import RolloutObjective
    from luthier.training.episodes import Group


def too_few(there: int, wanted: int, rounds: int, *, stop: bool) -> None:
    """Warn, or raise TrainingError, when the rounds of a step are used up."""
    said = (
        f"only {there} of {wanted} groups differ in reward after {rounds} rounds of answers; take easier or harder "
        "prompts, raise num_generations or max_resample_rounds"
    )
    if stop:
        raise TrainingError(said + ", or set too_few_groups: go_on", code="rollout_too_few")
    logger.warning(said)


def all_flat(groups: Sequence[Group], smallest: int) -> bool:
    """Tell whether no rewards differ where they are compared: inside groups, or, without groups, among all answers.

    A single answer without a group has no other to be compared with.
    """
    if smallest > 1:
        return all(group.is_flat(smallest) for group in groups)
    rewards = [episode.reward for group in groups for episode in group.graded()]
    return len(rewards) != 1 and len(set(rewards)) <= 1


def watch_flat(seen: Sequence[Group], steps: int, config: RolloutConfig) -> None:
    """Warn half way to `max_flat_steps` steps without any difference in reward, and raise TrainingError there."""
    most = config.max_flat_steps
    if steps not in (ceil(most / 2), most):
        return
    rewards = sorted({e.reward for group in seen for e in group.graded() if e.reward is not None})
    ended = any(not e.is_cut_off for group in seen for e in group.episodes)
    why = "" if ended else f"; no answer ends within max_completion_length {config.max_completion_length}"
    said = (
        f"in the last {steps} steps no two answers to a prompt differed in reward (last: "
        f"{', '.join(f'{r:g}' for r in rewards[:3]) or 'none'}){why}: there is nothing to learn from"
    )
    if steps == most:
        raise TrainingError(
            f"{said}; take other prompts or rewards, start from a model that succeeds at times, or raise "
            "rollout_temperature or max_flat_steps",
            code="rollout_flat",
        )
    logger.warning("%s; the run stops after %d such steps", said, most)


def exchange_flat(kept: list[Group], objective: RolloutObjective, draw: random.Random) -> list[Group]:
    """Drop groups without difference, or let others of the same step stand in for them, as the objective says.

    Standing in is DUPO's way (WebSailor, arXiv:2507.02592).
    """
    how = objective.on_equal_rewards
    if how in ("keep", "resample"):
        return kept
    told = [group for group in kept if not group.is_flat(objective.smallest_group)]
    if how == "drop" or not told:
        return told
    return [*told, *draw.choices(told, k=len(kept) - len(told))]


def mean_version(groups: Sequence[Group], otherwise: float) -> float:
    """Return the mean version of the weights that answered."""
    versions = [episode.answer.completion.version for group in groups for episode in group.episodes]
    return float(np.mean(versions)) if versions else otherwise


def seen_metrics(
    seen: Sequence[Group], kept: Sequence[Group], rewards: Sequence[str], smallest: int
) -> dict[str, tuple[float, float]]:
    """Return name -> (sum, count) of rewards, lengths and groups of a step."""
    episodes = [episode for group in seen for episode in group.episodes]
    graded = [e.reward for e in episodes if e.reward is not None]
    by_group = [[e.reward for e in group.graded() if e.reward is not None] for group in seen]
    spreads = [float(np.std(values, ddof=1)) for values in by_group if len(values) > 1]
    distinct = len({id(group) for group in kept})
    metrics = {
        "reward": (sum(graded), len(graded)),
        "reward_std": (sum(spreads), len(spreads)) if spreads else (float(np.std(graded or [0.0])), 1),
        "reward/failed": (len(episodes) - len(graded), len(episodes)),
        "rollout/tokens": (sum(len(e.answer.completion.tokens) for e in episodes), len(episodes)),
        "rollout/cut_off": (sum(e.is_cut_off for e in episodes), len(episodes)),
        "rollout/dropped_prompts": (len(seen) - distinct, 1),
        "rollout/duplicates": (len(kept) - distinct, 1),
    }
    for name in rewards:
        there = [x for e in episodes if (x := e.rewards[name]) is not None]
        metrics[f"reward/{name}"] = (sum(there), len(there))
    if smallest > 1:
        metrics["rollout/flat_groups"] = (sum(group.is_flat(smallest) for group in seen), len(seen))
    return metrics


def say_cut_off(metrics: Mapping[str, tuple[float, float]], config: RolloutConfig) -> None:
    """Say once when no answer of a step ended."""
    cut_off, count = metrics["rollout/cut_off"]
    if count and cut_off == count:
        say_once(
            f"no answer of a step ended within max_completion_length {config.max_completion_length}; raise it, or "
            "begin with supervised fine-tuning that teaches the model to end"
        )
