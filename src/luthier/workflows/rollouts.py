"""Objectives over rollouts: prompts, engine, rewards and the collector that turns them into windows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError, LuthierError
from luthier.core.log import first_line, logger
from luthier.core.protocols import Engine, Environment
from luthier.data.audit import AuditReport
from luthier.data.prompts import PromptOrder, PromptRow, read_prompts, tokenize
from luthier.rewards.build import check_columns
from luthier.rewards.grading import Grader, NamedReward
from luthier.training.model_reward import ModelReward
from luthier.training.rollout import Collector
from luthier.training.rollout_state import Sizes
from luthier.workflows.build import make_engine, seed_of_rows, split_rows
from luthier.workflows.sources import Feed

if TYPE_CHECKING:
    from luthier.config.schema import RunConfig
    from luthier.core.types import Answer, Example
    from luthier.data.prepare import Preparer
    from luthier.runs.store import RunStore
    from luthier.training.stop import StopFlag
    from luthier.training.trainer import Trainer
    from luthier.workflows.judges import Judges
    from luthier.workflows.parts import Parts

MOST_TOGETHER = 128
"""Answers that grow together in the engine."""


@dataclass(slots=True)
class Prompts:
    """What rollouts begin with, read and checked before a run directory is made."""

    train: list[PromptRow]
    held_out: list[PromptRow]
    reports: dict[str, AuditReport]
    environment: Environment | None
    rewards: list[NamedReward]

    @property
    def fingerprint(self) -> str:
        """Return what names exactly these prompts, and the columns that their answers are graded with."""
        digest = hashlib.sha256()
        for row in self.train:
            digest.update(np.asarray(row.tokens, dtype=np.int32).tobytes())
            digest.update(json.dumps(row.example.extra, default=str, sort_keys=True).encode())
        return f"{len(self.train)} prompts, {digest.hexdigest()[:16]}"


class Rollouts:
    """Prompts that are answered while training."""

    def __init__(self, config: RunConfig, parts: Parts, accelerator: Any, judges: Judges) -> None:
        self.config, self.parts, self.accelerator = config, parts, accelerator
        self.sizes = sizes_of(config, accelerator.num_processes)
        without_dropout(parts.policy)
        self.prompts: Prompts = prepare_prompts(config, parts, judges)
        self.engine = engine_of(config, parts, accelerator, self.sizes)
        self.reports = self.prompts.reports
        self.size = f"{len(self.prompts.train)} prompts"
        self.per_step = (
            f"{self.sizes.prompts} prompts x {config.rollout.num_generations} answers and {self.sizes.updates} "
            f"update{'s' if self.sizes.updates > 1 else ''} a step"
        )

    @property
    def fingerprint(self) -> str | None:
        """Return the number of prompts and a hash of all of them."""
        return self.prompts.fingerprint

    def feed(self, run: RunStore, *, stop: StopFlag) -> Feed:
        """Return a collector, which is the loader."""
        config, parts, prompts = self.config, self.parts, self.prompts
        collector = Collector(
            prompts=PromptOrder(prompts.train, seed=seed_of_rows(config), shuffle=not config.data.disable_shuffling),
            held_out=prompts.held_out,
            sizes=self.sizes,
            objective=config.objective,
            config=config.rollout,
            policy=parts.policy,
            reference=parts.reference,
            engine=self.engine,
            grader=Grader(
                prompts.rewards,
                time_limit_seconds=config.rollout.reward_time_limit_seconds,
                written=lambda answer: written(parts.tokenizer, answer),
            ),
            template=parts.preparer.template,
            environment=prompts.environment,
            run=run,
            accelerator=self.accelerator,
            seed=config.train.seed,
        )

        def attend(trainer: Trainer) -> None:
            collector.between = trainer.leave_if_stopped

        return Feed(
            collector,
            evaluator=collector.evaluate if self.prompts.held_out else None,
            updates_per_step=self.sizes.updates,
            attend=attend,
            close=collector.close,
        )


def written(tokenizer: Any, answer: Answer) -> str:
    """Return prompt and answer as the policy saw them, special tokens included."""
    completion = answer.completion
    return tokenizer.decode([*completion.prompt_tokens, *completion.tokens], skip_special_tokens=False)


def sizes_of(config: RunConfig, num_ranks: int) -> Sizes:
    """Return how many of what a step has. Raises ConfigError when the answers do not make whole groups."""
    train, rollout, objective = config.train, config.rollout, config.objective
    minibatches = rollout.rollout_minibatches or objective.usual_minibatches
    answers = train.per_device_train_batch_size * train.gradient_accumulation_steps * minibatches
    if answers % rollout.num_generations:
        raise ConfigError(
            f"num_generations: {rollout.num_generations} does not divide the {answers} answers of a step "
            f"(per_device_train_batch_size {train.per_device_train_batch_size} x gradient_accumulation_steps "
            f"{train.gradient_accumulation_steps} x rollout_minibatches {minibatches}); change one of them"
        )
    return Sizes(
        prompts=answers // rollout.num_generations * num_ranks,
        rows=train.per_device_train_batch_size,
        minibatches=minibatches,
        epochs=rollout.rollout_epochs or objective.usual_epochs,
    )


def prepare_prompts(config: RunConfig, parts: Parts, judges: Judges) -> Prompts:
    """Read prompts, and put a reward model beside what grades their answers. Raises ConfigError and DataError."""
    rollout, data, preparer = config.rollout, config.data, parts.preparer
    rewards, environment = list(judges.rewards), judges.environment
    if parts.reward_model is not None:
        graded = ModelReward(parts.reward_model, parts.tokenizer)
        rewards.append(NamedReward("reward_model", rollout.reward_model_weight, graded))
    most = _most_prompt_tokens(config, parts.policy.model)
    reports: dict[str, AuditReport] = {}
    train = _read("train", data.dataset, environment, preparer, most, reports)
    held_out = _read("eval", data.eval_dataset, None, preparer, most, reports) if data.eval_dataset else []
    check_columns(rewards, (row.example for row in (*train, *held_out)))
    if data.val_size:
        kept, held = split_rows(len(train), data.val_size, seed_of_rows(config))
        train, held_out = [train[i] for i in kept], [train[i] for i in held]
    overlap = {row.tokens for row in train} & {row.tokens for row in held_out}
    if overlap:
        logger.warning("evaluation overlaps training: %d equal prompts", len(overlap))
    return Prompts(train, held_out, reports, environment, rewards)


def _most_prompt_tokens(config: RunConfig, model: Any) -> int:
    """Return the room for a prompt beside an answer. Raises ConfigError when there is none."""
    answer, rows = config.rollout.max_completion_length, config.data.cutoff_len
    limit = getattr(plain_model(model).config, "max_position_embeddings", None)
    room = min(rows, limit or rows)
    if answer >= room:
        what = f"cutoff_len is {rows}" if rows <= (limit or rows) else f"this model sees at most {limit} tokens"
        raise ConfigError(f"max_completion_length {answer} leaves no room for a prompt: {what}; lower it")
    return room - answer


def _examples_of(environment: Environment) -> list[Example]:
    """Return the prompts of an environment. Raises ConfigError for whatever foreign code raises."""
    try:
        return list(environment.examples())
    except LuthierError:
        raise
    except Exception as error:
        kind = type(environment).__name__
        raise ConfigError(f"environment {kind}: its prompts: {type(error).__name__}: {first_line(error)}") from error


def _read(
    which: str,
    names: tuple[str, ...],
    environment: Environment | None,
    preparer: Preparer,
    most: int,
    reports: dict[str, AuditReport],
) -> list[PromptRow]:
    examples = [] if environment is None else _examples_of(environment)
    if examples and names:
        raise ConfigError("dataset and an environment with prompts of its own are both set; keep one")
    if examples:
        report = AuditReport(rows=len(examples))
        rows = tokenize(examples, preparer, most, report)
    elif names:
        rows, report = read_prompts(names, preparer, most)
    else:
        raise ConfigError(
            "dataset is required: a name in dataset_info.json or a file with prompts, or set environment",
            code="config_missing",
        )
    reports[which] = report
    logger.info("prompts: %s", report.total())
    report.enforce(preparer.config.bad_rows)
    return rows


def engine_of(config: RunConfig, parts: Parts, accelerator: Any, sizes: Sizes) -> Engine:
    """Return what answers. Raises ConfigError where it cannot answer ahead, and ModelError where it cannot run this."""
    answers = sizes.prompts // accelerator.num_processes * config.rollout.num_generations
    evaluate = replace(config.evaluate, predict_batch_size=max(1, min(answers, MOST_TOGETHER)))
    if config.rollout.rollout_ahead and accelerator.num_processes > 1:
        raise ConfigError("rollout_ahead: 1 is for one process; set it to 0")
    engine = make_engine(parts.policy.model, parts.tokenizer, replace(config, evaluate=evaluate))
    if config.rollout.rollout_ahead and not engine.keeps_weights:
        raise ConfigError(
            "rollout_ahead: 1 needs an engine with weights of its own, because this one reads those that are being "
            "trained; set it to 0, or engine: local"
        )
    return engine


def without_dropout(model: Any) -> None:
    """Switch dropout off: a ratio of log-probabilities would compare two different masks."""
    import torch

    found = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    for module in found:
        module.p = 0.0
    if found:
        logger.info("dropout is off: ratios would compare different masks")
