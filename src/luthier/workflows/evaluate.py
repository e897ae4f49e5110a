"""Measure models on rows that they were not trained on: a run beside its base, and beside other runs."""

from __future__ import annotations

import gc
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.load import dump
from luthier.config.schema import ModelConfig, RunConfig
from luthier.core.anatomy import plain_model
from luthier.core.errors import ModelError, RunError
from luthier.core.log import logger
from luthier.core.paths import write_whole
from luthier.core.progress import parts
from luthier.evaluation import results
from luthier.evaluation.kind import Evaluation, Kind
from luthier.evaluation.measure import compare, unique
from luthier.evaluation.subject import Subject
from luthier.kernels.cpu import give_pages_back, prepare_process
from luthier.models.adapters import switched_off
from luthier.models.device import place
from luthier.models.load import find, load_for_inference
from luthier.models.reward_files import refuse_reward_model
from luthier.runs.store import is_run
from luthier.workflows.build import base_of_run, check_engine, make_engine, make_template
from luthier.workflows.held_out import make_kinds

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from luthier.core.progress import Parts

OF_THE_ROWS = ("dataset", "eval_dataset", "val_size", "dataset_dir", "formatting", "columns", "tags", "pairs",
               "max_samples", "cutoff_len", "too_long", "bad_rows")  # fmt: skip
"""Settings that say which rows are read: those of the first source hold for all."""


@dataclass(slots=True)
class Comparison:
    """The numbers of several models on the same rows."""

    evaluations: list[Evaluation]
    folders: list[Path] = field(default_factory=list[Path])
    """Where results were written."""

    def as_dict(self) -> dict[str, Any]:
        """Return every number, as results.json holds them."""
        return {"models": [results.plain_evaluation(each) for each in self.evaluations]}


@dataclass(frozen=True, slots=True)
class Job:
    """One source: a model, and the one that it was made from where there is one."""

    config: RunConfig
    name: str
    run: Path | None
    base: ModelConfig | None
    """The base as settings; for an adapter those of the model itself, because its base is the model without it."""
    is_adapter: bool

    @property
    def base_name(self) -> str:
        """Return how the base is called in results."""
        files = find(self.config.model).below if self.is_adapter or self.base is None else find(self.base)
        below = "".join(f" + {adapter}" for adapter in files.adapters)
        return f"base {files.public_base or files.base}{below}"

    @property
    def base_key(self) -> str:
        """Return what is equal for runs with one base that is asked in the same way."""
        data, model = self.config.data, self.config.model
        return repr((self.base_name, data.template, data.default_system, data.enable_thinking, model.quantization))


def evaluate(config: RunConfig, *, base: bool = False, out: Path | None = None) -> Evaluation:
    """Measure one model, or with `base` the one that it was made from; write nothing but its answers to `out`.

    Raises ConfigError, DataError, ModelError and DependencyError, most of them before a model is loaded.
    """
    (job,) = plan([config], base=base)
    kinds = make_kinds(config)
    refuse_file(out)
    if base and not job.is_adapter:
        assert job.base is not None
        config = replace(config, model=job.base)
    with loaded(config, job.base_name if base else job.name) as subject:
        if base and job.is_adapter:
            with switched_off(subject.model):
                evaluation = measure(kinds, subject)
        else:
            evaluation = measure(kinds, subject)
    set_against_rows(kinds, evaluation)
    write_predictions(evaluation, out)
    return evaluation


def evaluate_all(
    configs: Sequence[RunConfig], *, base: bool | None = None, out: Path | None = None, name: str | None = None
) -> Comparison:
    """Measure every model of `configs` on the rows of the first, and what each was made from.

    `base`: None measures bases where there are some, True insists on them, False leaves them out. `out`: a folder for
    all results, or a .jsonl file for the answers of the last model; without a folder, results go to
    evaluation/`name` (or the time) of each run directory.
    """
    jobs = plan(configs, base=base)
    lines, folder = (out, None) if out is not None and out.suffix == ".jsonl" else (None, out)
    refuse_file(lines)
    folders = [results.folder_for(job.run, folder, name) for job in jobs]
    kinds = make_kinds(jobs[0].config)
    bases: dict[str, Evaluation] = {}
    to_measure = len(jobs) + len({job.base_key for job in jobs if job.base is not None})
    with parts(to_measure + len(jobs) * ("judge" in kinds)) as work:
        tuned = [_measure_job(job, kinds, bases, work) for job in jobs]
        for job, evaluation in zip(jobs, tuned, strict=True):
            reference = bases.get(job.base_key) or next(iter([*bases.values(), tuned[0]]))
            with work.part(f"{evaluation.model}: judge") if "judge" in kinds else nullcontext():
                if reference is not evaluation:
                    set_against(kinds, reference, evaluation)
                elif len(jobs) == 1:
                    set_against_rows(kinds, evaluation)
    comparison = Comparison([*bases.values(), *tuned])
    write_predictions(tuned[-1], lines)
    settings = dump(jobs[0].config)
    if folder is not None:
        comparison.folders.append(results.write(folder, results.Written(settings, comparison.evaluations)))
        return comparison
    for job, evaluation, each in zip(jobs, tuned, folders, strict=True):
        if each is not None:
            reference = [other for other in comparison.evaluations if other.model == evaluation.against]
            written = results.Written({**settings, "model": dump(job.config)["model"]}, [*reference, evaluation])
            comparison.folders.append(results.write(each, written))
    return comparison


# ---- which models


def plan(configs: Sequence[RunConfig], *, base: bool | None) -> list[Job]:
    """Return a job for each source, with the rows and the ways of measuring of the first.

    Raises ModelError when one cannot be measured.
    """
    first = configs[0]
    rows = {name: getattr(first.data, name) for name in OF_THE_ROWS}
    names = unique([config.model.model_name_or_path for config in configs])
    jobs: list[Job] = []
    for config, name in zip(configs, names, strict=True):
        files = find(config.model)
        refuse_reward_model(files)
        check_engine(config)
        shared = replace(
            config,
            data=replace(config.data, **rows),
            train=replace(config.train, seed=first.train.seed),
            objective=first.objective,
            generate=first.generate,
            evaluate=first.evaluate,
        )
        is_adapter = files.adapter is not None
        made_from = None if base is False else config.model if is_adapter else base_of_run(config.model)
        if base and made_from is None:
            raise ModelError(f"{name} is no run directory and no adapter, so there is no base to compare it with")
        folder = Path(config.model.model_name_or_path).expanduser()
        run = next((each for each in (folder, folder.parent) if is_run(each)), None)
        jobs.append(Job(shared, name, run, made_from, is_adapter))
    return jobs


@contextmanager
def loaded(config: RunConfig, name: str) -> Generator[Subject]:
    """Load a model for the time of the block; its memory is given back behind it."""
    prepare_process(config.model.threads)
    placement = place(config.model)
    logger.info("%s: %s", name, placement.reason)
    model, tokenizer = load_for_inference(config.model, placement)
    subject = _subject(name, model, tokenizer, config)
    try:
        yield subject
    finally:
        subject.release()
        del model
        gc.collect()
        give_pages_back()


def _subject(name: str, model: Any, tokenizer: Any, config: RunConfig) -> Subject:
    template = make_template(tokenizer, config, plain_model(model).config.model_type)
    return Subject(name, model, template, lambda: make_engine(model, tokenizer, config))


# ---- measuring


def _measure_job(job: Job, kinds: Mapping[str, Kind], bases: dict[str, Evaluation], work: Parts) -> Evaluation:
    """Measure a model and, where no other job has done it, its base; never both in memory at once."""
    wants_base = job.base is not None and job.base_key not in bases
    with loaded(job.config, job.name) as subject:
        with work.part():
            evaluation = measure(kinds, subject)
        if wants_base and job.is_adapter:
            model, template, make = subject.model, subject.template, subject.make_engine
            subject.release()
            with switched_off(model), work.part():
                bases[job.base_key] = measure(kinds, Subject(job.base_name, model, template, make))
    if wants_base and not job.is_adapter and job.base is not None:
        with loaded(replace(job.config, model=job.base), job.base_name) as subject, work.part():
            bases[job.base_key] = measure(kinds, subject)
    return evaluation


def measure(kinds: Mapping[str, Kind], subject: Subject) -> Evaluation:
    """Let every kind measure a model."""
    evaluation = Evaluation(subject.name)
    with parts(len(kinds)) as measured:
        for name, kind in kinds.items():
            logger.info("%s: %s", subject.name, name)
            with measured.part(f"{subject.name}: {name}"):
                evaluation.outcomes[name] = kind.measure(subject)
    evaluation.predictions = subject.memo.get("answers", [])
    return evaluation


def set_against(kinds: Mapping[str, Kind], reference: Evaluation, candidate: Evaluation) -> None:
    """Fill in how `candidate` differs from `reference`, over the rows that both were measured on."""
    candidate.against = reference.model
    there = {each.name: each for each in reference.measures}
    pairs = {each.name: compare(each, there[each.name]) for each in candidate.measures if each.name in there}
    candidate.differences = {name: found for name, found in pairs.items() if found is not None}
    for name, kind in kinds.items():
        more, own = kind.against(reference, candidate), candidate.outcomes[name]
        candidate.outcomes[name] = replace(
            own,
            measures=(*own.measures, *more.measures),
            lines=(*own.lines, *more.lines),
            notes=(*own.notes, *more.notes),
        )


def set_against_rows(kinds: Mapping[str, Kind], evaluation: Evaluation) -> None:
    """Let a model without a counterpart be judged against the answers that the rows expect."""
    if "judge" in kinds:
        expected = [replace(each, answer=each.expected) for each in evaluation.predictions]
        set_against(kinds, Evaluation("the expected answers", predictions=expected), evaluation)


# ---- answers as one file


def refuse_file(out: Path | None) -> None:
    """Raise RunError when the file for answers is there already."""
    if out is not None and out.exists():
        raise RunError(f"{out} is there already and is not written over; choose another name", code="run_exists")


def write_predictions(evaluation: Evaluation, out: Path | None) -> None:
    """Write the answers of a model as JSON lines, where a file is asked for."""
    if out is not None:
        outcome = evaluation.outcomes.get("generate")
        write_whole(out, results.json_lines([] if outcome is None else outcome.lines))
