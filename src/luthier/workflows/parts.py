"""What a run is made of: model, tuning, kernels, tokenizer, reference, critic, reward model, and how they are saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from luthier.config.schema import RunConfig
from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.kernels.cpu import prepare_process
from luthier.models.adapters import is_adapter, load_adapter, save_trained
from luthier.models.device import Placement, place
from luthier.models.load import (
    ModelFiles,
    find,
    fresh_model,
    load_model,
    load_tokenizer,
    merge_in,
    parameter_counts,
    put_kernels,
    resolve,
)
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.models.reward_files import refuse_reward_model
from luthier.models.reward_model import RewardModel, give_padding, load_reward_model
from luthier.models.routing import check_balance
from luthier.models.value import (
    CriticStart,
    make_critic,
    make_head,
    only_grades,
    only_values,
    save_critic,
    save_with_head,
    start_head,
)
from luthier.models.virtual import check_context
from luthier.models.vocabulary import refuse_more_words, rows_learn
from luthier.models.whole import learn_in_float32, read_whole
from luthier.training.checkpoint import Checkpoint
from luthier.training.optim import is_of_critic, usual_rate
from luthier.workflows.build import make_preparer
from luthier.workflows.reference import make_reference

CRITIC = "critic"
"""Folder of the value model in a checkpoint."""
SHARED_HEAD = "value_head.safetensors"


@dataclass(slots=True)
class Parts:
    """Model, tokenizer and their helpers, in one hand."""

    policy: Policy
    tokenizer: Any
    preparer: Any
    save_model: Callable[[Path], None]
    """Writes the result."""
    save_all: Callable[[Path], None]
    """Writes what a checkpoint needs beside it, too."""
    rate_of: Callable[[str, float], float]
    """Name of a parameter and usual rate -> its peak learning rate."""
    reference: Reference | None
    placement: Placement
    base: str
    reward_model: RewardModel | None = None


def assemble(config: RunConfig, resume: Checkpoint | None) -> Parts:
    """Load the model, from the checkpoint when there is one, and put tuning and kernels on it."""
    prepare_process(config.model.threads)
    grades = only_grades(config.objective.needs)
    if not grades:
        refuse_reward_model(find(config.model))
    placement = place(config.model, base_learns=config.tuning.base_learns)
    logger.info("device: %s", placement.reason)
    below, continued = _stack(config)
    files = below
    if resume is not None and not is_adapter(resume.path):
        files = ModelFiles(str(resume.path), public_base=below.public_base)
    tokenizer = load_tokenizer(files if continued is None else find(config.model), config.model)
    is_new = config.model.train_from_scratch and resume is None
    model = (fresh_model if is_new else load_model)(files, config.model, placement)
    model = merge_in(model, files.adapters)
    preparer = make_preparer(tokenizer, config, model.config.model_type)
    if grades:
        give_padding(preparer.template)
        only_values(model)
    beside = _Beside(config, model, tokenizer, placement, below, continued, resume)
    reward_model = beside.reward_model()
    critic = beside.critic()
    model = _tuned(model, _with_words(config, model, continued), continued, resume, below.public_base)
    check_context(model, config.data.cutoff_len)
    put_kernels(model, config.model)
    policy = _policy(model, config, placement)
    policy.critic = critic
    if grades:
        begun = resume.path if resume is not None else None
        policy.value_head = start_head(model, find(config.model), config.model, seed=config.train.seed, resume=begun)
    elif "value" in config.objective.needs and critic is None:
        policy.value_head = beside.shared_head(model)

    def save_model(folder: Path) -> None:
        if grades:
            save_with_head(policy, folder, tokenizer, below.public_base)
            return
        save_trained(model, folder, below.public_base)
        tokenizer.save_pretrained(folder)

    def save_all(folder: Path) -> None:
        save_model(folder)
        if policy.critic is not None:
            save_critic(policy.critic, folder / CRITIC, tokenizer)
        elif policy.value_head is not None and not grades:
            save_file({"weight": policy.value_head.weight.detach().contiguous()}, folder / SHARED_HEAD)

    reference = make_reference(config, policy, tokenizer, placement, (below, continued))
    rate_of = _rates(config, model)
    return Parts(
        policy, tokenizer, preparer, save_model, save_all, rate_of, reference, placement, files.base, reward_model
    )


def _rates(config: RunConfig, model: Any) -> Callable[[str, float], float]:
    """Return the peak learning rate by name: that of the tuning, and for a critic's parameters one of its own."""
    tuning = config.tuning
    own = config.rollout.critic_learning_rate or usual_rate(tuning, None, model.config.get_text_config().hidden_size)

    def rate_of(name: str, usual: float) -> float:
        if is_of_critic(name) and "rollouts" in config.objective.needs:
            return tuning.learning_rate(name.removeprefix("critic."), own)
        return tuning.learning_rate(name, usual)

    return rate_of


@dataclass(frozen=True, slots=True)
class _Beside:
    """What stands beside the policy while it learns from rollouts, made before its own tuning is applied."""

    config: RunConfig
    model: Any
    tokenizer: Any
    placement: Placement
    below: ModelFiles
    continued: Path | None
    resume: Checkpoint | None

    @property
    def _shared(self) -> tuple[Any, ModelFiles] | None:
        """Return what other models may be laid over; a base that learns belongs to the policy alone."""
        return None if self.config.tuning.base_learns else (self.model, self.below)

    def reward_model(self) -> RewardModel | None:
        """Return the reward model of the settings."""
        name = self.config.rollout.reward_folder
        return None if name is None else load_reward_model(name, self.config.model, self.placement, shared=self._shared)

    def critic(self) -> Policy | None:
        """Return a value model of its own, where the objective needs one and the settings want it separate."""
        rollout, needs = self.config.rollout, self.config.objective.needs
        if not {"value", "rollouts"} <= needs or rollout.value_model == "shared":
            return None
        start = CriticStart(
            base=self.model,
            files=self.below,
            adapter=self.continued,
            begins_as=rollout.critic_model or self._fitting_reward_model(),
            resume=None if self.resume is None else self.resume.path / CRITIC,
        )
        return make_critic(start, self.config.tuning, self.config.model, self.placement, seed=self.config.train.seed)

    def _fitting_reward_model(self) -> str | None:
        """Return the reward model if its tokens are the policy's, so that a critic can begin as it."""
        name = self.config.rollout.reward_folder
        if name is None:
            return None
        theirs = load_tokenizer(resolve(name), self.config.model)
        if theirs.get_vocab() == self.tokenizer.get_vocab():
            return name
        logger.info("critic: the reward model has other tokens, so it begins as the policy with a fresh head")
        return None

    def shared_head(self, model: Any) -> Any:
        """Return a second head on the policy, fresh or from the checkpoint."""
        head = make_head(model, self.config.train.seed)
        if self.resume is not None:
            head.load_state_dict(load_file(self.resume.path / SHARED_HEAD))
        return head


def _with_words(config: RunConfig, model: Any, continued: Path | None) -> RunConfig:
    """Return the settings with a tuning under which the rows of added words learn."""
    if not config.model.has_own_words:
        return config
    if continued is None:
        return replace(config, tuning=rows_learn(config.tuning, model))
    own = load_tokenizer(find(config.model), config.model.without_words())
    refuse_more_words(own, config.model, continued)
    return config


def _stack(config: RunConfig) -> tuple[ModelFiles, Path | None]:
    """Return the model that is trained on, and the adapter that training goes on with."""
    files = find(config.model)
    return (files, None) if config.model.create_new_adapter else (files.below, files.adapter)


def _policy(model: Any, config: RunConfig, placement: Placement) -> Policy:
    every, learning = parameter_counts(model)
    logger.info("model: %.1f M parameters, %.2f M learn (%.2f %%)", every / 1e6, learning / 1e6, 100 * learning / every)
    balance = config.train.moe_aux_loss_coef > 0
    if balance:
        check_balance(model)
    policy = Policy(model, autocast=placement.autocast, balance=balance)
    if "rollouts" in config.objective.needs:
        policy.temperature = config.rollout.rollout_temperature
    return policy


def _tuned(model: Any, config: RunConfig, adapter: Path | None, resume: Checkpoint | None, base: str) -> Any:
    """Return the model with what learns, in float32."""
    tuned = _with_adapter(model, config, adapter, resume, base)
    read = resume.path if resume is not None and is_adapter(resume.path) else adapter
    if learn_in_float32(tuned) and read is not None:
        read_whole(tuned, read)
    return tuned


def _with_adapter(model: Any, config: RunConfig, adapter: Path | None, resume: Checkpoint | None, base: str) -> Any:
    if resume is not None and is_adapter(resume.path):
        return load_adapter(model, resume.path, trainable=True, resume=True)
    if adapter is None:
        return config.tuning.apply(model)
    if config.tuning.base_learns:
        raise ConfigError(
            f"{adapter} is an adapter, but {type(config.tuning).__name__.lower()} tuning trains the model below it; "
            "set create_new_adapter: true to merge it first, or finetuning_type: lora to go on with it"
        )
    logger.info("continuing adapter %s with its own settings", adapter)
    return load_adapter(model, adapter, trainable=True, base=base)
