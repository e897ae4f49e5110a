"""Settings of answers that are graded while training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from luthier.config.values import Names, Positive, split_commas


def is_address(name: str) -> bool:
    """Tell whether something is asked over HTTP under this name."""
    return re.match(r"https?://[^/]", name) is not None


def _as_part(value: object) -> object:
    """Read a bare name, or name, weight and whatever else as settings."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or "settings" in value:
        return value
    named = {key: each for key, each in value.items() if key in ("name", "weight")}
    return {**named, "settings": {key: each for key, each in value.items() if key not in named}}


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPart:
    """A thing from a shelf, by name, with settings of its own."""

    name: str
    """Name on the shelf, module:attribute, or FILE.py:attribute."""
    weight: float = 1.0
    """Weight in a sum."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the thing."""


Part = Annotated[NamedPart, BeforeValidator(_as_part)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(split_commas)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    """How prompts are answered and graded while training; for objectives that learn from the policy's own answers.

    One step answers per_device_train_batch_size x gradient_accumulation_steps x rollout_minibatches prompts and answers
    in all, num_generations to each prompt, and learns from them.
    """

    num_generations: Positive = 8
    """Answers to one prompt."""
    max_completion_length: Positive = 256
    """Most tokens of an answer, end-of-turn included."""
    rollout_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the draws; ratios, KL and entropy are those of the tempered distribution."""
    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens whose probability reaches this share."""
    rollout_top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from this many tokens; 0 draws from all."""
    rollout_epochs: Positive | None = None
    """Passes over the answers of a step; none takes the objective's: 4 for ppo, 1 for others."""
    rollout_minibatches: Positive | None = None
    """Updates of one pass; none takes the objective's: 4 for gspo, 1 for others."""
    rollout_ahead: Annotated[int, Field(ge=0, le=1)] = 0
    """1 answers the prompts of the next step while this one trains, with weights that are one step old; 0 does not."""
    rewards: Parts = ()
    """What grades answers: names, or {name, weight, settings of its own}; also module:function and FILE.py:function."""
    reward_model: str | None = None
    """Folder of a reward model that grades answers, too; or the address of a server that does (http://...)."""
    reward_model_adapters: Names = ()
    """Folder of the adapter that makes a reward model of the model that reward_model names."""
    reward_model_type: Literal["lora", "full", "freeze", "oft", "api"] | None = None
    """api: reward_model is an address; the other words say of a folder what it shows itself."""
    reward_model_weight: float = 1.0
    """Its weight in the sum of rewards."""
    combine_rewards: Literal["sum", "normalize"] = "sum"
    """sum: add up weighted rewards; normalize: bring each to mean 0 and deviation 1 in its group first."""
    reward_time_limit_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A reward that takes longer counts as missing."""
    environment: Part | None = None
    """Where prompts come from instead of a data set, and what answers to answers: {name, settings of its own}."""
    max_turns: Positive = 1
    """Most answers of the model in one episode with an environment."""
    cut_off: Literal["keep", "mask", "penalize"] = "keep"
    """Answers that reach max_completion_length: learned from like others, left out of the loss, or graded lower."""
    cut_off_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Taken from the reward of cut-off answers where they are penalized."""
    old_logp: Literal["trainer", "engine"] = "trainer"
    """Whose log-probabilities of the answers the ratio is formed with."""
    importance_cap: Annotated[float, Field(ge=0)] = 0.0
    """Weigh tokens by the ratio trainer / engine, at most this (2 is usual); 0 does not."""
    max_resample_rounds: Positive = 10
    """Rounds of answers in one step while too few groups differ in reward (on_equal_rewards: resample)."""
    too_few_groups: Literal["go_on", "stop"] = "go_on"
    """What follows when the rounds are used up."""
    max_flat_steps: Positive = 10
    """Steps in a row without any difference in reward until the run stops."""
    score_clip: Annotated[float, Field(ge=0)] = 0.0
    """Keep rewards within plus and minus this number; 0 does not."""
    score_scaling: bool = False
    """Divide rewards by their running deviation."""
    value_model: Literal["separate", "shared"] = "separate"
    """Of ppo: a model of its own, or a second head on the policy."""
    critic_model: str | None = None
    """What a separate value model begins as; none takes the reward model, or else the policy with a fresh head."""
    critic_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Peak learning rate of the value model; 0 takes the usual one of the tuning for supervised rows."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which only the value model learns."""

    @property
    def reward_address(self) -> str | None:
        """Return the address of the server that grades answers; None where it is a model of ours or there is none."""
        return self.reward_model if is_address(self.reward_model or "") else None

    @property
    def reward_folder(self) -> str | None:
        """Return the name of the reward model to load; None where there is none."""
        named = self.reward_model if self.reward_address is None else None
        return self.reward_model_adapters[0] if named and self.reward_model_adapters else named
