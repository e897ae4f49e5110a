"""Value heads, and policies that say values: reward models while they are trained, and critics. Shapes: D hidden."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import logger
from luthier.models.adapters import has_adapter, load_adapter, save_trained
from luthier.models.load import ModelFiles, load_model, load_tokenizer, merge_in, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.models.quantized import QuantizedLinear
from luthier.models.reward_files import (
    add_head,
    check_reward_form,
    drop_output_head,
    head_of,
    read_head,
    save_reward_model,
)

if TYPE_CHECKING:
    from luthier.config.schema import ModelConfig
    from luthier.core.protocols import Need, Tuning
    from luthier.models.device import Placement


def make_head(model: Any, seed: int) -> nn.Linear:
    """Return a fresh head for `model`: float32, normal with deviation 1 / sqrt(D + 1) (arXiv:2009.01325)."""
    hidden = plain_model(model).config.get_text_config().hidden_size
    weight_1D = torch.randn(1, hidden, generator=torch.Generator().manual_seed(seed)) / (hidden + 1) ** 0.5
    return head_of(weight_1D).to(plain_model(model).device)


def start_head(
    model: Any, files: ModelFiles, config: ModelConfig, *, seed: int, resume: Path | None = None
) -> nn.Linear:
    """Return the head that training begins or goes on with: of `resume`, else of the files of the model, else fresh.

    Raises ModelError when a checkpoint has none.
    """
    places = (*reversed(files.adapters), files.base) if resume is None else (resume,)
    for place in places:
        head = read_head(place, config)
        if head is not None:
            if resume is None:
                logger.info("value head: that of %s", place)
            return head.to(plain_model(model).device)
    if resume is not None:
        raise ModelError(f"{resume} holds no value head (score.weight)", code="model_reward")
    logger.info("value head: a fresh one")
    return make_head(model, seed)


def only_grades(needs: frozenset[Need]) -> bool:
    """Tell whether an objective trains a reward model: values, and no answers of its own."""
    return "value" in needs and "rollouts" not in needs


def only_values(model: Any) -> Any:
    """Prepare a frozen base for a tuning that learns values. Raises ConfigError when it cannot be saved as such."""
    check_reward_form(plain_model(model).config)
    return drop_output_head(model)


def save_with_head(policy: Policy, folder: Path, tokenizer: Any, base: str = "") -> None:
    """Write model and head as plain transformers and peft load them, with the tokenizer.

    `base`: the base of an adapter as others find it; none names the folder that it was loaded from.
    """
    model, head = policy.model, policy.value_head
    assert head is not None, "there is no value head to save"
    if has_adapter(model):
        save_trained(model, folder, base or str(plain_model(model).name_or_path))
        add_head(folder, model, head)
    else:
        save_reward_model(model, head, folder, pad=tokenizer.pad_token_id)
    tokenizer.save_pretrained(folder)


# ---- sharing a base


def share(base: Any) -> Any | None:
    """Return new module objects over the same frozen tensors; None where that cannot be done.

    A copy takes adapters, kernels and modes of its own; what is written into a weight as a whole (`weight.data = ...`)
    stays with the one that it was written into.
    """
    if any(type(module).__module__.startswith("bitsandbytes.") for module in base.modules()):
        return None
    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    memo |= {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    memo |= {id(m.narrow): m.narrow for m in base.modules() if isinstance(m, QuantizedLinear)}
    return copy.deepcopy(base, memo)


def same_model(a: ModelFiles, b: ModelFiles) -> bool:
    """Tell whether two models are made of the same files."""
    return [_place(a.base), *map(_place, a.adapters)] == [_place(b.base), *map(_place, b.adapters)]


def _place(name: str | Path) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def frozen_base(
    wanted: ModelFiles, config: ModelConfig, placement: Placement, shared: tuple[Any, ModelFiles] | None
) -> Any:
    """Return the model of `wanted` with its adapters merged: over the tensors of `shared` where that is the same one.

    `shared`: a frozen model without adapter, and what it was loaded from.
    """
    if shared is not None and same_model(wanted, shared[1]):
        copied = share(shared[0])
        if copied is not None:
            return copied
    return merge_in(load_model(wanted, config, placement), wanted.adapters)


# ---- critics


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticStart:
    """What a critic is made from."""

    base: Any
    """The policy's model before its tuning is applied: without adapter, and frozen where an adapter learns."""
    files: ModelFiles
    """What `base` was loaded from: a whole model, and the adapters that were merged into it."""
    adapter: Path | None = None
    """The adapter that the policy goes on with."""
    begins_as: str | None = None
    """A reward model (or any model with the policy's tokens) to begin as; none takes the policy with a fresh head."""
    resume: Path | None = None
    """Folder of the critic in a checkpoint to go on from."""

    @property
    def wanted(self) -> ModelFiles:
        """Return the model to begin as, the adapter to go on with on top."""
        if self.begins_as is not None:
            return resolve(self.begins_as)
        return (
            self.files if self.adapter is None else replace(self.files, adapters=(*self.files.adapters, self.adapter))
        )


def make_critic(start: CriticStart, tuning: Tuning, config: ModelConfig, placement: Placement, *, seed: int) -> Policy:
    """Return a policy that says values, with what learns under `tuning`, or the adapter that it goes on with.

    To be called before the policy's own tuning is applied. Where an adapter learns and both have the same base, the
    frozen tensors are shared; otherwise the model is loaded. A critic that goes on from `start.resume` is bit by bit
    what `save_critic` was given. Raises ModelError when `begins_as` has other tokens than the policy, and ConfigError
    when its architecture cannot be saved as a critic.
    """
    wanted = start.wanted
    if start.begins_as is not None:
        _check_tokens(wanted, start, config)
    model = _critic_that_learns(start, tuning, config, placement) if tuning.base_learns else None
    if model is None:
        below, goes_on = _stack(start)
        model = only_values(frozen_base(below, config, placement, (start.base, start.files)))
        folder = start.resume or goes_on
        resumes = start.resume is not None
        model = tuning.apply(model) if folder is None else load_adapter(model, folder, trainable=True, resume=resumes)
    put_kernels(model, config, quiet=True)
    head = start_head(model, wanted, config, seed=seed, resume=start.resume)
    said = "the policy's model" if start.begins_as is None else start.begins_as
    logger.info("critic: %s", f"goes on from {start.resume}" if start.resume else f"begins as {said}")
    return Policy(model, autocast=placement.autocast, value_head=head)


def save_critic(critic: Policy, folder: Path, tokenizer: Any) -> None:
    """Write a critic in the form of a reward model, for `make_critic` to go on from."""
    folder.mkdir(parents=True, exist_ok=True)
    save_with_head(critic, folder, tokenizer)


def _stack(start: CriticStart) -> tuple[ModelFiles, Path | None]:
    """Return what a critic's adapter stands on, and the adapter that it goes on with."""
    goes_on = start.wanted.adapter if start.begins_as is not None else start.adapter
    return (start.wanted.below if goes_on is not None else start.wanted), goes_on


def _critic_that_learns(start: CriticStart, tuning: Tuning, config: ModelConfig, placement: Placement) -> Any:
    if start.adapter is not None and start.begins_as is None:
        raise ConfigError(f"{start.adapter} is an adapter, but this tuning trains the model below it")
    wanted = start.wanted if start.resume is None else ModelFiles(str(start.resume))
    return tuning.apply(only_values(merge_in(load_model(wanted, config, placement), wanted.adapters)))


def _check_tokens(wanted: ModelFiles, start: CriticStart, config: ModelConfig) -> None:
    theirs, ours = load_tokenizer(wanted, config), load_tokenizer(start.files, config)
    if theirs.get_vocab() != ours.get_vocab():
        raise ModelError(
            f"{start.begins_as} has another tokenizer ({len(theirs)} tokens) than the policy ({len(ours)}), so a "
            "critic cannot begin as it; set critic_model to a model with the policy's tokens",
            code="model_reward",
        )
