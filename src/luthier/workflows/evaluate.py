"""Answer held-out rows with a model and grade the answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError, DataError
from luthier.core.findings import RowError
from luthier.core.paths import write_whole
from luthier.data.prepare import Preparer
from luthier.data.rows import check_kind
from luthier.data.sources import find_sources, read_rows
from luthier.evaluation.predict import Prediction, exact_match, predict, wilson_interval
from luthier.workflows.build import load_base_speaker, load_speaker

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.config.schema import RunConfig
    from luthier.core.types import Example


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Graded answers of one model."""

    model: str
    exact_match: float
    interval: tuple[float, float]
    """95 % confidence."""
    predictions: list[Prediction]

    def line(self) -> str:
        """Return the result in one line."""
        low, high = self.interval
        count = len(self.predictions)
        return f"{self.model}: exact match {self.exact_match:.3f} (95 %: {low:.3f} to {high:.3f}, {count} rows)"


def evaluate(config: RunConfig, *, base: bool = False, out: Path | None = None) -> Evaluation:
    """Answer the rows of `eval_dataset` greedily, or as `generate` says, and count exact answers.

    `base` grades the model that this one was made from. Writes the predictions to `out` as JSON lines when given.
    """
    names = config.data.eval_dataset
    if not names:
        raise ConfigError("eval_dataset is required: the rows to answer", code="config_missing")
    speaker = load_base_speaker(config) if base else load_speaker(config)
    examples = read_examples(config, Preparer(speaker.template, config.data, "answer"))
    predictions = predict(examples, template=speaker.template, engine=speaker.engine, how=config.generate)
    share = exact_match(predictions)
    name = f"base of {config.model.model_name_or_path}" if base else config.model.model_name_or_path
    if out is not None:
        write_whole(out, "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in predictions))
    return Evaluation(name, share, wilson_interval(share, len(predictions)), predictions)


def read_examples(config: RunConfig, preparer: Preparer) -> list[Example]:
    """Return the examples of `eval_dataset`. Raises DataError naming the first bad row."""
    examples: list[Example] = []
    config_rows = replace(config.data, max_samples=config.evaluate.predict_samples)
    sources = find_sources(config.data.eval_dataset, config_rows)
    check_kind(sources, "answer")
    for source in sources:
        for row in read_rows(source):
            if row.finding is not None:
                raise DataError(str(row.finding), code="data_bad_row")
            try:
                examples.append(preparer.example_of(row, source))
            except RowError as error:
                raise DataError(f"{row.where} {error}", code="data_bad_row") from error
    if not examples:
        raise DataError("eval_dataset has no rows", code="data_empty")
    return examples
