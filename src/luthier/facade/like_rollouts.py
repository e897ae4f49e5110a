"""GRPOTrainer -> rollouts of our own: its prompts, its rewards, our decoder."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.config.rollout import RolloutConfig
from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.core.types import Example, Message
from luthier.data.prompts import PromptOrder, PromptRow
from luthier.data.template import ChatTemplate
from luthier.objectives.grpo import Grpo
from luthier.rewards.grading import Grader, NamedReward
from luthier.training.rollout import Collector
from luthier.training.rollout_state import Sizes
from luthier.workflows.build import make_engine
from luthier.workflows.sources import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luthier.config.schema import RunConfig
    from luthier.core.types import Answer
    from luthier.models.policy import Policy
    from luthier.models.reference import Reference
    from luthier.runs.store import RunStore
    from luthier.training.trainer import Trainer

_MEANS = {"grpo": "answers", "bnpo": "tokens", "dapo": "tokens", "dr_grpo": "limit"}
"""Loss of TRL -> what it is a mean over."""
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "loss_type": tuple(_MEANS),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "none"),
    "multi_objective_aggregation": ("sum_then_normalize",),
    "num_iterations": (1,),
    "min_p": (None, 0, 0.0),
    "repetition_penalty": (1.0, 1),
    "top_entropy_quantile": (1.0,),
    "use_adaptive_entropy": (False,),
    "off_policy_mask_threshold": (None,),
    "generation_kwargs": (None, {}),
    "use_vllm": (False,),
    "sync_ref_model": (False,),
}
_SPECIAL = ("prompt", "completion", "completion_ids")
_LONG_TIME = 10**9


def grpo_of(args: Any) -> Grpo:
    """Return the objective of a GRPOTrainer. Raises ConfigError for what our rollouts have no counterpart for."""
    found = [
        f"{name}={getattr(args, name)!r}"
        for name, known in _ONLY.items()
        if hasattr(args, name) and getattr(args, name) not in known
    ]
    if args.steps_per_generation != args.gradient_accumulation_steps:
        found.append(f"steps_per_generation={args.steps_per_generation}, which is not gradient_accumulation_steps")
    if args.beta and getattr(args, "use_bias_correction_kl", False):
        found.append("use_bias_correction_kl=True with a beta (set it to False)")
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
        found.append("evaluation while training")
    if found:
        raise ConfigError(
            f"train_like: rollouts have no counterpart for {'; '.join(found)}; change it, or use trainer.train()"
        )
    if args.delta is not None:
        say_once("delta bounds a ratio that is 1 with one update for each rollout, so it changes nothing")
    return Grpo(
        kl_coef=args.beta,
        ratio=args.importance_sampling_level,
        clip_low=args.epsilon,
        clip_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        aggregation=_MEANS[args.loss_type],  # pyright: ignore[reportArgumentType]
        scale_rewards=args.scale_rewards == "group",
        entropy_coef=args.entropy_coef,
    )


def rollout_of(args: Any) -> RolloutConfig:
    """Return how answers are drawn and what becomes of those that are cut off."""
    return RolloutConfig(
        num_generations=args.num_generations,
        max_completion_length=args.max_completion_length,
        rollout_temperature=args.temperature,
        rollout_top_p=args.top_p,
        rollout_top_k=args.top_k or 0,
        cut_off="mask" if args.mask_truncated_completions else "keep",
        max_flat_steps=_LONG_TIME,
    )


def prompts_of(trainer: Any) -> list[PromptRow]:
    """Return the prompts as the trainer tokenizes them, each with its columns."""
    rows: list[PromptRow] = []
    for number, row in enumerate(trainer.train_dataset):
        prompt = row["prompt"]
        said: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        context = tuple(Message(role=each["role"], content=str(each["content"])) for each in said)
        ids = trainer._tokenize_prompts([prompt])[0][0]
        rows.append(PromptRow(Example(context=context, extra=dict(row), origin=f"row {number + 1}"), tuple(ids)))
    return rows


@dataclass(frozen=True, slots=True)
class TrainerReward:
    """A reward function of the trainer, called as the trainer calls it: all answers of a step at once."""

    trainer: Any
    function: Any
    may_hang: ClassVar[bool] = False

    def many(self, answers: Sequence[Answer]) -> list[float | None]:
        """Grade all answers; None leaves an answer out."""
        rows = [answer.example.extra for answer in answers]
        as_messages = not isinstance(rows[0]["prompt"], str)
        texts = [answer.completion.text for answer in answers]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in _SPECIAL}
        found = self.function(
            prompts=[row["prompt"] for row in rows],
            completions=[[{"role": "assistant", "content": text}] for text in texts] if as_messages else texts,
            completion_ids=[list(answer.completion.tokens) for answer in answers],
            trainer_state=self.trainer.state,
            log_extra=_nothing,
            log_metric=_nothing,
            **columns,
        )
        return list(asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found)


async def _awaited(value: Any) -> Any:
    return await value


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand where TRL's trainer takes numbers of a reward for its own table."""


def rewards_of(trainer: Any) -> list[NamedReward]:
    """Return the rewards with their weights. Raises ConfigError for models and environments that grade."""
    foreign = [name for name in ("tools", "environment_factories", "rollout_func") if getattr(trainer, name, None)]
    models = [
        name for name, each in zip(trainer.reward_func_names, trainer.reward_funcs, strict=True) if not _is_plain(each)
    ]
    if foreign or models:
        raise ConfigError(
            f"train_like: rollouts have no counterpart for {', '.join([*foreign, *models])} of this trainer; use "
            "trainer.train(), or `luthier train` with reward_model or environment"
        )
    named = zip(trainer.reward_func_names, trainer.reward_weights.tolist(), trainer.reward_funcs, strict=True)
    return [NamedReward(name, weight, TrainerReward(trainer, function)) for name, weight, function in named]  # pyright: ignore[reportArgumentType]


def _is_plain(function: Any) -> bool:
    from torch import nn

    return callable(function) and not isinstance(function, nn.Module)


def rollouts_of(trainer: Any) -> Callable[..., Feed]:
    """Return what makes the windows of a GRPOTrainer. Raises ConfigError for rewards that are no functions."""
    args, prompts, rewards = trainer.args, prompts_of(trainer), rewards_of(trainer)
    answers = args.per_device_train_batch_size * args.gradient_accumulation_steps
    rows = args.per_device_train_batch_size
    sizes = Sizes(prompts=answers // args.num_generations, rows=rows, minibatches=1, epochs=1)

    def feed_of(
        config: RunConfig, policy: Policy, run: RunStore, accelerator: Any, reference: Reference | None
    ) -> Feed:
        policy.temperature = args.temperature
        collector = Collector(
            prompts=PromptOrder(prompts, seed=args.seed, shuffle=args.shuffle_dataset),
            held_out=(),
            sizes=sizes,
            objective=config.objective,
            config=config.rollout,
            policy=policy,
            reference=reference,
            engine=make_engine(policy.model, trainer.processing_class, config),
            grader=Grader(rewards, time_limit_seconds=config.rollout.reward_time_limit_seconds),
            template=ChatTemplate(trainer.processing_class),
            environment=None,
            run=run,
            accelerator=accelerator,
            seed=args.seed,
        )

        def attend(loop: Trainer) -> None:
            collector.between = loop.leave_if_stopped

        return Feed(collector, reference=reference, attend=attend, close=collector.close)

    return feed_of
