"""Loss per target token and perplexity on held-out rows: packed, masked exactly, as the trainer evaluates them.

Of preference rows the chosen answers are scored, of tagged ones the good ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from luthier.core.errors import ConfigError
from luthier.core.progress import within
from luthier.evaluation.kind import KINDS, Outcome, Task
from luthier.evaluation.measure import measured, ratio, unique
from luthier.evaluation.rows import need_rows

if TYPE_CHECKING:
    from luthier.evaluation.kind import Evaluation
    from luthier.evaluation.measure import Measure
    from luthier.evaluation.rows import HeldOut
    from luthier.evaluation.subject import Subject


@KINDS.register("loss")
class LossKind:
    """Mean of -log p over the target tokens of eval_dataset, in nats, and exp of it."""

    def __init__(self, task: Task) -> None:
        if task.held_out is None:
            raise need_rows(task.config, "loss")
        if not task.held_out.has_targets:
            raise ConfigError(
                "loss: the rows of eval_dataset are prompts without target tokens; leave loss out of eval_kinds",
                code="config_missing",
            )
        self.held_out = task.held_out

    def measure(self, subject: Subject) -> Outcome:
        """Return loss and perplexity."""
        return Outcome(loss_measures("loss", subject, self.held_out))

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return nothing: differences say it all."""
        del reference, candidate
        return Outcome(())


def loss_measures(name: str, subject: Subject, rows: HeldOut) -> tuple[Measure, ...]:
    """Return loss and perplexity of a model on rows, as name/loss and name/perplexity."""
    ids, losses_U, weights_U = losses(subject, rows)
    # A row's statistics are named by the way it was tokenized: losses of other tokens are no pairs.
    keys = [f"{each} as {subject.writing}" for each in ids]
    return (
        measured(f"{name}/loss", ratio(keys, losses_U, weights_U), better="lower"),
        measured(f"{name}/perplexity", ratio(keys, losses_U, weights_U, np.exp), better="lower"),
    )


def losses(subject: Subject, rows: HeldOut) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return where each unit stands, the sum of its losses, and the sum of its weights."""
    import torch

    from luthier.data.pack import pack, plan_batches

    units, origins = rows.units(subject)
    policy, device = subject.policy, subject.model.device
    losses_U, weights_U = np.zeros(len(units)), np.zeros(len(units))
    per_batch = rows.config.train.per_device_eval_batch_size
    done = 0
    for batch in plan_batches([len(unit) for unit in units], per_batch, None):
        packed = pack([units[i] for i in batch]).to(device)
        with torch.no_grad():
            logp_N = policy(packed).logp
        # Segments stand in the order of their units.
        unit_of_S = np.repeat(batch, [len(units[i]) for i in batch])
        for sums_U, x_N in ((losses_U, -logp_N * packed.weight), (weights_U, packed.weight)):
            np.add.at(sums_U, unit_of_S, packed.sum_by_segment(x_N.double()).cpu().numpy())
        done += len(batch)
        within(done, len(units))
    return unique(origins), losses_U, weights_U
