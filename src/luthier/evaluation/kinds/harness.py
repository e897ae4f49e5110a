"""Tasks of lm-evaluation-harness, answered by our decoder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, DependencyError
from luthier.core.registry import did_you_mean
from luthier.evaluation.kind import KINDS, Outcome, Task
from luthier.evaluation.measure import Measure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.evaluation.kind import Evaluation
    from luthier.evaluation.subject import Subject


@KINDS.register("harness")
class HarnessKind:
    """The metrics of `eval_tasks` with the standard errors that the harness gives."""

    def __init__(self, task: Task) -> None:
        settings = task.config.evaluate
        if not settings.eval_tasks:
            raise ConfigError("harness: eval_tasks is required: names of tasks", code="config_missing")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise DependencyError("harness needs lm_eval: pip install 'luthier[harness]'") from error
        logging.getLogger("lm_eval").setLevel("ERROR")
        self.settings, self.seed = settings, task.config.train.seed
        self.tasks: Any = TaskManager(include_path=settings.eval_tasks_dir)
        known = list(self.tasks.all_tasks)
        for name in settings.eval_tasks:
            if name not in known:
                raise ConfigError(
                    f"eval_tasks: {name!r} is no task of lm-evaluation-harness{did_you_mean(name, known) or '.'} "
                    "`lm-eval ls tasks` lists them; eval_tasks_dir adds a folder of your own",
                    code="config_unknown_name",
                )

    def measure(self, subject: Subject) -> Outcome:
        """Return every metric of every task, the parts of a group as details."""
        from lm_eval.evaluator import simple_evaluate

        from luthier.evaluation.harness_model import HarnessModel

        found: Any = simple_evaluate(
            HarnessModel(subject),  # pyright: ignore[reportAbstractUsage]
            tasks=list(self.settings.eval_tasks),
            limit=self.settings.eval_tasks_limit or None,
            task_manager=self.tasks,
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
        )
        if found is None:
            return Outcome(())
        counts = found["n-samples"]
        return Outcome(tuple(
            measure
            for name, results in found["results"].items()
            for measure in _measures(name, results, counts.get(name), is_detail=name not in self.settings.eval_tasks)
        ))  # fmt: skip

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return nothing: the harness gives no scores of single rows to pair."""
        del reference, candidate
        return Outcome(())


def _measures(
    name: str, results: Mapping[str, Any], counts: Mapping[str, int] | None, *, is_detail: bool
) -> list[Measure]:
    """Return what the harness found on one task; intervals are value and 1.96 standard errors around it."""
    found: list[Measure] = []
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{metric}_stderr,{filtered}")
        spread = 1.96 * error if isinstance(error, int | float) else None
        shown = f"harness/{name}/{metric}" + ("" if filtered == "none" else f"/{filtered}")
        found.append(
            Measure(
                name=shown,
                value=float(value),
                interval=None if spread is None else (float(value) - spread, float(value) + spread),
                rows=0 if counts is None else int(counts.get("effective", 0)),
                better="lower" if "perplexity" in metric or "bits_per_byte" in metric else "higher",
                is_detail=is_detail,
            )
        )
    return found
