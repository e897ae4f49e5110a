"""Answers to held-out rows, graded by metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.evaluation.answers import Prediction, answer
from luthier.evaluation.kind import KINDS, Outcome, Task
from luthier.evaluation.measure import measured, share
from luthier.evaluation.metric import METRICS
from luthier.evaluation.metrics.json_fields import all_objects
from luthier.evaluation.rows import need_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Example
    from luthier.evaluation.kind import Evaluation, Line
    from luthier.evaluation.measure import Measure
    from luthier.evaluation.subject import Subject

MUCH_CUT_OFF = 0.1
"""From this share of cut-off answers on, that is said beside the numbers."""


@KINDS.register("generate")
class GenerateKind:
    """Lets the model answer and grades the answers by every metric of `eval_metrics`."""

    def __init__(self, task: Task) -> None:
        if task.held_out is None:
            raise need_rows(task.config, "generate")
        self.rows, self.how = task.held_out, task.config.generate
        examples = self.rows.with_answers
        if not examples:
            raise ConfigError(
                "generate: the rows of eval_dataset have no answers to compare with; leave generate out of eval_kinds",
                code="config_missing",
            )
        names = task.config.evaluate.eval_metrics or _usual(examples)
        self.metrics = [METRICS.get(name) for name in names]
        for metric in self.metrics:
            metric.check(examples)

    def measure(self, subject: Subject) -> Outcome:
        """Return every metric, and the share of answers that were cut off."""
        predictions = answer(subject, self.rows, self.how)
        ids = [p.origin for p in predictions]
        cut = measured(
            "generate/cut_off", share(ids, [p.finish_reason == "length" for p in predictions]), better="lower"
        )
        measures = [*(each for metric in self.metrics for each in metric(predictions)), cut]
        notes = [f"{subject.name}: {cut.value:.0%} of the answers were cut off at max_new_tokens or the end of the "
                 f"context; their grades say little"] if cut.value >= MUCH_CUT_OFF else []  # fmt: skip
        return Outcome(tuple(measures), tuple(lines_of(predictions, measures)), tuple(notes))

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return nothing: differences say it all."""
        del reference, candidate
        return Outcome(())


def _usual(examples: Sequence[Example]) -> list[str]:
    return ["exact", "json"] if all_objects(examples) else ["exact"]


def lines_of(predictions: Sequence[Prediction], measures: Sequence[Measure]) -> list[Line]:
    """Return the predictions as they are written, each with the grades that a single row has."""
    lines: list[Line] = [asdict(each) for each in predictions]
    by_origin = {str(line["origin"]): line for line in lines}
    for measure in measures:
        if measure.series is None or measure.series.stats_RK.shape[1] != 2:
            continue
        for name, (above, below) in zip(measure.series.ids, measure.series.stats_RK, strict=True):
            if below == 1:
                by_origin[name].setdefault("grades", {})[measure.name.partition("/")[2]] = round(float(above), 6)
    return lines
