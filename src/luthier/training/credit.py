"""From rewards to the advantage of every learned token: normalization, penalties, groups, credit, whitening.

Shapes: G answers of a group, T learned tokens of an answer, N learned tokens of a rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.core.errors import TrainingError
from luthier.core.types import Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luthier.config.rollout import RolloutConfig
    from luthier.core.protocols import RolloutObjective
    from luthier.training.episodes import Episode, Group

GROUP_EPSILON, EPSILON = 1e-4, 1e-8


def total_rewards(group: Group, weights: Mapping[str, float], *, normalize: bool) -> None:
    """Set the reward of each answer: the weighted sum, of what is normalized in the group first where that is asked."""
    values = {
        name: np.array([math.nan if (x := e.rewards[name]) is None else x for e in group.episodes]) for name in weights
    }
    if normalize:
        values = {name: _normalized(each) for name, each in values.items()}
    totals = sum((weights[name] * each for name, each in values.items()), np.zeros(len(group.episodes)))
    for episode, total in zip(group.episodes, totals, strict=True):
        episode.reward = float(total) if math.isfinite(total) else None


def _normalized(values_G: np.ndarray) -> np.ndarray:
    there = values_G[np.isfinite(values_G)]
    if len(there) < 2:
        return np.where(np.isfinite(values_G), 0.0, math.nan)
    return (values_G - there.mean()) / (there.std(ddof=1) + GROUP_EPSILON)


def shape_rewards(graded: Sequence[Episode], config: RolloutConfig, deviation: float) -> None:
    """Scale, clip and lower rewards as the settings say; `deviation` is that of all rewards so far."""
    for episode in graded:
        assert episode.reward is not None
        if config.score_scaling:
            episode.reward /= deviation
        if config.score_clip:
            episode.reward = min(max(episode.reward, -config.score_clip), config.score_clip)
        if config.cut_off == "penalize" and episode.is_cut_off:
            episode.reward -= config.cut_off_penalty


def learned_places(segment: Segment) -> np.ndarray:
    """Return where the learned tokens of a segment are, [T], in the order of a packed batch."""
    return np.flatnonzero(np.asarray(segment.weight)[1:]) + 1


def put_stream(segment: Segment, name: str, x_T: np.ndarray) -> None:
    """Give the learned tokens a number each."""
    values = np.zeros(len(segment.tokens))
    values[learned_places(segment)] = x_T
    segment.streams[name] = values.tolist()


def stream_of(segment: Segment, name: str) -> np.ndarray:
    """Return the numbers of the learned tokens, [T]."""
    return np.asarray(segment.streams[name])[learned_places(segment)]


def log_ratio(segment: Segment) -> np.ndarray:
    """Return log p - log ref of the learned tokens, [T], at the time of the rollout (the estimator k1)."""
    return stream_of(segment, "old_logp") - stream_of(segment, "ref_logp")


def assign_credit(
    groups: Sequence[Group], objective: RolloutObjective, kl_coef: float, reduce: Callable[[Any], Any]
) -> None:
    """Give every learned token its advantage and, where the objective needs a value, its return.

    `reduce`: tensor -> its sum over all ranks. Raises TrainingError for an advantage that is not finite.
    """
    tasks: list[_Task] = []
    for group in groups:
        tasks += _tasks(group, objective, kl_coef)
    if objective.whiten_rewards:
        _whiten_rewards(tasks, reduce)
    for task in tasks:
        _credit(task, objective)


@dataclass(slots=True)
class _Task:
    """What the reward of an answer's learned tokens is made of."""

    segment: Segment
    score: torch.Tensor
    """Advantage of the whole answer, which stands at its last token."""
    penalty_T: np.ndarray

    @property
    def reward_T(self) -> np.ndarray:
        """Return the reward of each learned token, [T]."""
        reward_T = -self.penalty_T
        reward_T[-1:] += float(self.score)
        return reward_T


def _tasks(group: Group, objective: RolloutObjective, kl_coef: float) -> list[_Task]:
    episodes = group.graded()
    rewards = [e.reward for e in episodes if e.reward is not None]
    if objective.penalty == "answer":
        kl = [0.0 if e.segment is None else float(log_ratio(e.segment).sum()) for e in episodes]
        rewards = [reward - kl_coef * each for reward, each in zip(rewards, kl, strict=True)]
    if len(rewards) < objective.smallest_group:
        for episode in episodes:
            episode.segment = None
        return []
    advantages_G = objective.advantages(torch.tensor(rewards, dtype=torch.float64))
    tasks: list[_Task] = []
    for episode, advantage in zip(episodes, advantages_G, strict=True):
        if not bool(torch.isfinite(advantage)):
            raise TrainingError(
                f"the advantage of an answer to {group.row.example.origin or 'a prompt'} is not finite "
                f"(rewards of its group: {rewards}); look at the rewards, or set score_clip",
                code="nonfinite_advantage",
            )
        episode.advantage = float(advantage)
        if episode.segment is not None:
            count, by_token = len(learned_places(episode.segment)), objective.penalty == "token"
            penalty_T = kl_coef * log_ratio(episode.segment) if by_token else np.zeros(count)
            tasks.append(_Task(episode.segment, advantage, penalty_T))
    return tasks


def _credit(task: _Task, objective: RolloutObjective) -> None:
    segment = task.segment
    values = torch.from_numpy(stream_of(segment, "old_value")) if "old_value" in segment.streams else None
    advantage_T, return_T = objective.credit(task.score, torch.from_numpy(task.penalty_T), values)
    put_stream(segment, "advantage", advantage_T.numpy())
    if return_T is not None:
        put_stream(segment, "return", return_T.numpy())


def _whiten_rewards(tasks: Sequence[_Task], reduce: Callable[[Any], Any]) -> None:
    """Bring the rewards of all learned tokens, of every rank, to deviation 1 about their mean, which stays.

    With mean m and deviation s a reward r becomes m + (r - m) / s, as in the code of arXiv:1909.08593. The score of an
    answer takes the factor, the penalty of each token the factor and the shift.
    """
    found = _moments([task.reward_T for task in tasks], reduce)
    if found is None:
        return
    mean, deviation = found
    factor = 1 / math.sqrt(deviation**2 + EPSILON)
    for task in tasks:
        task.score = task.score * factor
        task.penalty_T = task.penalty_T * factor - mean * (1 - factor)


def whiten(segments: Sequence[Segment], reduce: Callable[[Any], Any]) -> None:
    """Bring the advantages of all learned tokens, of every rank, to mean 0 and deviation 1."""
    parts = [stream_of(segment, "advantage") for segment in segments]
    found = _moments(parts, reduce)
    if found is None:
        return
    mean, deviation = found
    for segment, x_T in zip(segments, parts, strict=True):
        put_stream(segment, "advantage", (x_T - mean) / (deviation + EPSILON))


def _moments(parts: Sequence[np.ndarray], reduce: Callable[[Any], Any]) -> tuple[float, float] | None:
    """Return mean and deviation of all numbers of all ranks; None of fewer than two."""
    every_N = np.concatenate(parts) if parts else np.zeros(0)
    sums = torch.tensor([every_N.sum(), (every_N**2).sum(), float(len(every_N))], dtype=torch.float64)
    total, squares, count = (float(each) for each in reduce(sums))
    if count < 2:
        return None
    mean = total / count
    return mean, math.sqrt(max(0.0, (squares - count * mean**2) / (count - 1)))
