"""What tuning has cost elsewhere: loss on a general set, beside that of the model it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.evaluation.kind import KINDS, Outcome, Task
from luthier.evaluation.kinds.loss import loss_measures
from luthier.evaluation.rows import HeldOut, kind_of

if TYPE_CHECKING:
    from luthier.evaluation.kind import Evaluation
    from luthier.evaluation.subject import Subject

NAME = "forgetting/loss"


@KINDS.register("forgetting")
class ForgettingKind:
    """Loss and perplexity on eval_general_dataset: texts or conversations that have nothing to do with the task."""

    def __init__(self, task: Task) -> None:
        names = task.config.evaluate.eval_general_dataset
        if not names:
            raise ConfigError(
                "forgetting: eval_general_dataset is required: rows that tuning had nothing to do with",
                code="config_missing",
            )
        self.rows = HeldOut(names, task.config, kind_of(names, task.config))

    def measure(self, subject: Subject) -> Outcome:
        """Return loss and perplexity."""
        return Outcome(loss_measures("forgetting", subject, self.rows))

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return a sentence when the general set has become less probable, beyond what chance explains."""
        found = candidate.differences.get(NAME)
        if found is None or found.interval is None or found.interval[0] <= 0:
            return Outcome(())
        before = reference.measure(NAME).value
        where = ", ".join(self.rows.names)
        note = (
            f"{candidate.model} has forgotten: its loss on {where} is {found.value:+.3f} over that of "
            f"{reference.model} ({before:.3f}); a lower learning_rate, fewer epochs, a lower lora_rank or general rows "
            "among the training data keep more"
        )
        return Outcome((), notes=(note,))
