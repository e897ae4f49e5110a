"""What `luthier train` does: train, measure, answer held-out rows, as do_train, do_eval and do_predict say."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, RunError
from luthier.core.log import is_main_process, logger
from luthier.core.paths import write_whole
from luthier.evaluation.measure import unique
from luthier.evaluation.results import json_lines
from luthier.runs.store import is_run, new_run_path
from luthier.training.metrics import peak_memory_bytes
from luthier.training.reports import write_results
from luthier.workflows.evaluate import loaded, measure, plan
from luthier.workflows.held_out import make_kinds
from luthier.workflows.train import TrainResult, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.config.schema import RunConfig
    from luthier.core.types import Example
    from luthier.evaluation.kind import Evaluation, Kind
    from luthier.evaluation.subject import Subject

PREDICTIONS = "generated_predictions.jsonl"
GRADES = {"generate/bleu_characters": "bleu-4", "generate/rouge_1": "rouge-1", "generate/rouge_2": "rouge-2",
          "generate/rouge_l": "rouge-l", "generate/exact_match": "exact_match", "loss/loss": "loss"}  # fmt: skip
"""Measure -> its name in results, behind predict_ or eval_."""
PLAIN, OF_LIBRARIES = ("exact",), ("bleu_characters", "rouge")
"""Metrics that predictions are graded by; the second need the extra `evaluate`."""


def carry_out(config: RunConfig, *, quiet: bool = False) -> TrainResult:
    """Train, measure and predict as the settings say, each into output_dir.

    Raises ConfigError where nothing is asked for, or rows to measure on are missing, before anything is done; and what
    `train` and `evaluate` raise.
    """
    asked = config.evaluate
    trains = asked.do_train if asked.do_train is not None else not (asked.do_eval or asked.do_predict)
    if not (trains or asked.do_eval or asked.do_predict):
        raise ConfigError("do_train: false, and neither do_eval nor do_predict is set: there is nothing to do")
    if asked.do_predict or not trains:
        _need_rows(config)
    if trains:
        result = train(config, quiet=quiet)
        if asked.do_predict and is_main_process():
            model = replace(config.model, model_name_or_path=str(result.run), adapter_name_or_path=(),
                            create_new_adapter=False)  # fmt: skip
            _predict(replace(config, model=model), result.run)
        return result
    folder = _folder(config)
    found = _predict(config, folder) if asked.do_predict else {}
    if asked.do_eval:
        found |= _evaluate(config, folder)
    return TrainResult(folder, "measured", 0, None, found.get("eval_loss"), None, peak_memory_bytes())


def _need_rows(config: RunConfig) -> None:
    if not (config.data.eval_dataset or (config.data.val_size and config.data.dataset)):
        word = "do_predict" if config.evaluate.do_predict else "do_eval"
        raise ConfigError(f"{word} needs rows: name an eval_dataset, or set val_size", code="config_missing")


def _folder(config: RunConfig) -> Path:
    """Return where results go without a training. Raises RunError where there are some already."""
    asked = config.train
    if asked.output_dir is None:
        return new_run_path(Path("runs"), asked.run_name or f"{Path(config.model.model_name_or_path).name}-measured")
    folder = Path(asked.output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir {folder} is a file", code="run_exists")
    names = [PREDICTIONS] * bool(config.evaluate.do_predict)
    names += ["eval_results.json"] * bool(config.evaluate.do_eval and not is_run(folder))
    there = [name for name in names if (folder / name).exists()]
    if there and not asked.overwrite_output_dir:
        raise RunError(
            f"{folder / there[0]} is there already; choose another output_dir, or set overwrite_output_dir: true",
            code="run_exists",
        )
    return folder


def _evaluate(config: RunConfig, folder: Path) -> dict[str, Any]:
    evaluation, seconds, _ = _measured(config, ("loss",))
    return _report(folder, "eval", evaluation, seconds)


def _predict(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Answer the held-out rows; write generated_predictions.jsonl and predict_results.json into `folder`."""
    generates = config.evaluate.predict_with_generate
    kinds = ("loss", "generate") if generates else ("loss",)
    evaluation, seconds, prompts = _measured(config, kinds)
    folder.mkdir(parents=True, exist_ok=True)
    if generates:
        lines = [
            {"prompt": prompts[each.origin], "predict": each.answer, "label": each.expected}
            for each in evaluation.predictions
        ]
        write_whole(folder / PREDICTIONS, json_lines(lines))
        logger.info("%d answers: %s", len(lines), folder / PREDICTIONS)
    return _report(folder, "predict", evaluation, seconds)


def _measured(config: RunConfig, kinds: Sequence[str]) -> tuple[Evaluation, float, dict[str, str]]:
    """Return what was measured, the seconds that it took without loading, and each row's prompt."""
    metrics = config.evaluate.eval_metrics or _metrics_here()
    asked = replace(config.evaluate, eval_kinds=tuple(kinds), eval_metrics=metrics)
    (job,) = plan([replace(config, evaluate=asked)], base=False)
    made = make_kinds(job.config)
    with loaded(job.config, job.name) as subject:
        began = time.perf_counter()
        evaluation = measure(made, subject)
        seconds = time.perf_counter() - began
        return evaluation, seconds, _prompts(made, subject)


def _prompts(kinds: dict[str, Kind], subject: Subject) -> dict[str, str]:
    """Return the text that each answered row was asked with, by where the row stands."""
    generate: Any = kinds.get("generate")
    examples: Sequence[Example] = generate.rows.with_answers if generate is not None else ()
    origins = unique([example.origin for example in examples])
    template = subject.template
    return {
        origin: template.tokenizer.decode(template.prompt(example.context, example.tools))
        for origin, example in zip(origins, examples, strict=True)
    }


def _metrics_here() -> tuple[str, ...]:
    from importlib.util import find_spec

    missing = [name for name in ("nltk", "rouge_score", "jieba") if find_spec(name) is None]
    if missing:
        logger.info("bleu-4 and rouge are left out: they need pip install 'luthier[evaluate]'")
    return PLAIN if missing else PLAIN + OF_LIBRARIES


def _report(folder: Path, split: str, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    found = {GRADES.get(m.name, m.name.partition("/")[2]): m for m in evaluation.measures if not m.is_detail}
    values: dict[str, Any] = {f"{split}_{name}": measure.value for name, measure in found.items()}
    rows = max((measure.rows for measure in evaluation.measures), default=0)
    values |= {
        f"{split}_runtime": round(seconds, 4),
        f"{split}_samples_per_second": round(rows / seconds, 3) if seconds else math.nan,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, split, values)
    return values
