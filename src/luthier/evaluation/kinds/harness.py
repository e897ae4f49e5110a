"""Tasks of lm-evaluation-harness, answered by our decoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, DependencyError
from luthier.core.registry import did_you_mean
from luthier.evaluation.kind import KINDS, Line, Outcome, Task
from luthier.evaluation.measure import Better, Measure, mean, measured, share

if TYPE_CHECKING:
    from luthier.evaluation.kind import Evaluation
    from luthier.evaluation.subject import Subject

_BETTER: dict[bool | None, Better] = {True: "higher", False: "lower"}


@KINDS.register("harness")
class HarnessKind:
    """The metrics of `eval_tasks`."""

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
            log_samples=True,
            bootstrap_iters=1000,
            random_seed=self.seed,
            numpy_random_seed=self.seed,
            torch_random_seed=self.seed,
        )
        if found is None:
            return Outcome(())
        rows = {task: [_Row.of(task, sample) for sample in samples] for task, samples in found["samples"].items()}
        measures = [
            _measure(
                name,
                key,
                results,
                _rows_of(name, found, rows),
                better=_BETTER.get(found["higher_is_better"].get(name, {}).get(key.partition(",")[0]), "neither"),
                is_detail=name not in self.settings.eval_tasks,
            )
            for name, results in found["results"].items()
            for key, value in results.items()
            if "," in key and "_stderr," not in key and isinstance(value, int | float)
        ]
        return Outcome(tuple(measures), tuple(row.line for each in rows.values() for row in each))

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return nothing: differences say it all."""
        del reference, candidate
        return Outcome(())


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a task, as one filter of its answers saw it."""

    id: str
    filter: str
    grades: Mapping[str, float]
    line: Line

    @classmethod
    def of(cls, task: str, sample: Mapping[str, Any]) -> _Row:
        names = [name for name in sample.get("metrics") or () if isinstance(sample.get(name), int | float)]
        grades = {name: float(sample[name]) for name in names}
        name, given = f"{task}:{sample['doc_id']}", sample.get("filtered_resps")
        line = {"origin": name, "filter": sample["filter"], "expected": sample.get("target"), "answer": given}
        return cls(name, str(sample["filter"]), grades, {**line, "grades": grades})


def _rows_of(name: str, found: Mapping[str, Any], rows: Mapping[str, list[_Row]]) -> list[_Row]:
    """Return the rows of a task, or of all tasks of a group."""
    parts = found.get("group_subtasks", {}).get(name) or ()
    return rows.get(name) or [row for part in parts for row in _rows_of(part, found, rows)]


def _measure(
    name: str, key: str, results: Mapping[str, Any], rows: Sequence[_Row], *, better: Better, is_detail: bool
) -> Measure:
    """Return a number of the harness: paired row by row where it is their mean, else with its standard error."""
    metric, _, filtered = key.partition(",")
    value, error = float(results[key]), results.get(f"{metric}_stderr,{filtered}")
    shown = f"harness/{name}/{metric}" + ("" if filtered == "none" else f"/{filtered}")
    graded = [row for row in rows if row.filter == filtered and metric in row.grades]
    values = [row.grades[metric] for row in graded]
    if values and abs(sum(values) / len(values) - value) < 1e-6:
        ids, is_share = [row.id for row in graded], set(values) <= {0.0, 1.0}
        series = share(ids, [value > 0 for value in values]) if is_share else mean(ids, values)
        return measured(shown, series, better=better, is_detail=is_detail)
    spread = 1.96 * error if isinstance(error, int | float) else None
    return Measure(
        name=shown,
        value=value,
        interval=None if spread is None else (value - spread, value + spread),
        rows=len({row.id for row in rows}),
        better=better,
        is_detail=is_detail,
    )
