"""What tells a better checkpoint from a worse one. Shapes: N predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from luthier.config.training import TrainConfig
    from luthier.core.batch import PackedBatch, Scores
    from luthier.core.protocols import Objective, Read


def merit(config: TrainConfig, values: Mapping[str, float]) -> tuple[str, float]:
    """Return the metric that checkpoints are compared by, and its value with the sign under which lower is better.

    Without `metric_for_best_model` that is the reward where answers are graded, else the loss. Raises TrainingError
    when the metric is not among those of an evaluation.
    """
    asked = config.metric_for_best_model
    name = f"eval_{asked.removeprefix('eval_')}" if asked else "eval_reward" if "eval_reward" in values else "eval_loss"
    if name not in values:
        raise TrainingError(
            f"metric_for_best_model: {asked} is not among the metrics of this evaluation; there are "
            f"{', '.join(sorted(values))}",
            code="config",
        )
    rises = config.greater_is_better
    rises = not name.endswith("loss") if rises is None else rises
    return name, -values[name] if rises else values[name]


def reads_of_evaluation(config: TrainConfig, objective: Objective) -> frozenset[Read]:
    """Return what the policy must compute in evaluation: what the objective reads, and which tokens are right."""
    correct: frozenset[Read] = frozenset({"correct"})
    return objective.reads | correct if config.compute_accuracy and "logp" in objective.reads else objective.reads


def token_accuracy(scores: Scores, batch: PackedBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Return how often the right token is the most probable one, as a sum over tokens; nothing where nobody asked."""
    if scores.correct is None:
        return {}
    learned_N = (batch.weight > 0).to(scores.correct)
    return {"accuracy": ((scores.correct * learned_N).sum(), learned_N.sum())}
