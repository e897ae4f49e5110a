"""The contract of the kinds of evaluation, and what they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luthier.config.schema import RunConfig
from luthier.core.registry import Registry
from luthier.evaluation.answers import Prediction
from luthier.evaluation.measure import Difference, Measure
from luthier.evaluation.rows import HeldOut

if TYPE_CHECKING:
    from luthier.evaluation.intervals import Interval
    from luthier.evaluation.subject import Subject

KINDS: Registry[Any] = Registry("kind of evaluation", "luthier.evaluation.kinds")
EXACT = "generate/exact_match"
Line = dict[str, Any]
"""One row of predictions-KIND.jsonl."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one kind found about one model."""

    measures: tuple[Measure, ...]
    lines: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the numbers should know."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a kind is built from, before any model is loaded."""

    config: RunConfig
    held_out: HeldOut | None
    """The rows of eval_dataset or val_size, shared by all kinds."""


@dataclass(slots=True)
class Evaluation:
    """Everything found about one model."""

    model: str
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    """By kind."""
    against: str | None = None
    """The model that it is compared with."""
    differences: dict[str, Difference] = field(default_factory=dict[str, Difference])
    """By the name of the measure: this model minus that one."""
    predictions: list[Prediction] = field(default_factory=list[Prediction])
    """Its answers to the held-out rows, where a kind has asked for them."""

    @property
    def measures(self) -> list[Measure]:
        """Return the numbers of all kinds."""
        return [measure for outcome in self.outcomes.values() for measure in outcome.measures]

    @property
    def notes(self) -> list[str]:
        """Return what a reader of the numbers should know."""
        return [note for outcome in self.outcomes.values() for note in outcome.notes]

    def measure(self, name: str) -> Measure:
        """Return a number by its name. Raises KeyError when it was not measured."""
        return {measure.name: measure for measure in self.measures}[name]

    @property
    def exact_match(self) -> float:
        """Return the share of exact answers. Raises KeyError when it was not measured."""
        return self.measure(EXACT).value

    @property
    def interval(self) -> Interval:
        """Return the 95 % interval of the share of exact answers. Raises KeyError when it was not measured."""
        found = self.measure(EXACT).interval
        assert found is not None, "a share of one row or more has an interval"
        return found

    def line(self) -> str:
        """Return the numbers in one line."""
        return f"{self.model}: " + ", ".join(str(measure) for measure in self.measures if not measure.is_detail)


class Kind(Protocol):
    """Built from settings and rows, which it checks; measures one model after the other."""

    def __init__(self, task: Task) -> None: ...

    def measure(self, subject: Subject) -> Outcome:
        """Return what it finds about a model."""
        ...

    def against(self, reference: Evaluation, candidate: Evaluation) -> Outcome:
        """Return what only shows beside another model; called once both have been measured."""
        ...
