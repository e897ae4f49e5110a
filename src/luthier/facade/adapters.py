"""get_peft_model: the words of scripts for LoRA from the tuning shelf."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import set_seed

from luthier.core.anatomy import decoder_layers, expert_parameters, family_of, linear_names, plain_model
from luthier.core.errors import ConfigError
from luthier.core.log import logger, say_once
from luthier.facade.held import Held, held_of
from luthier.facade.loading import finish, quicken
from luthier.facade.modes import CHECKPOINTING
from luthier.facade.parameters import ADAPTER_IGNORED, ADAPTER_REFUSED, PROJECTIONS, AdapterArguments, weigh
from luthier.models.adapters import LEARNING
from luthier.models.load import parameter_counts
from luthier.tuning.lora import Lora
from luthier.tuning.targets import check_names

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHOLE = ("embed_tokens", "lm_head")
"""Modules that learn whole where they are named as targets: low rank does not reach them under every trainer."""
_STARTS: dict[Any, str] = {True: "zero", "gaussian": "gaussian", "loftq": "loftq", "pissa": "pissa", "olora": "olora"}
"""Value of init_lora_weights -> start on the shelf."""


def add(model: Any, arguments: AdapterArguments) -> Any:
    """Return `model` as a peft model whose adapter "default" learns in float32, or as it is where it has one.

    Raises TypeError when it has another one, ConfigError for what cannot be had.
    """
    held = held_of(model)
    weigh(arguments, "get_peft_model", ADAPTER_IGNORED, ADAPTER_REFUSED)
    if held.full_finetuning:
        say_once("full_finetuning: every weight learns, so get_peft_model puts no adapter on the model")
        return model
    asked = as_lora(model, arguments, held)
    if hasattr(model, "peft_config"):
        _compare(model, asked)
        logger.info("this model has that adapter already; it stays as it is")
        return model
    set_seed(arguments.random_state)
    held.checkpointing = CHECKPOINTING.get(arguments.use_gradient_checkpointing)
    tuned = asked.apply(model)
    logger.info("kernels: %s", ", ".join(quicken(tuned)))
    finish(tuned, held)
    every, learning = parameter_counts(tuned)
    logger.info("model: %.1f M parameters, %.2f M learn (%.2f %%)", every / 1e6, learning / 1e6, 100 * learning / every)
    return tuned


def as_lora(model: Any, arguments: AdapterArguments, held: Held) -> Lora:
    """Return the tuning that the arguments describe. Raises ConfigError for what the shelf has not."""
    if not isinstance(arguments.r, int) or isinstance(arguments.r, bool) or arguments.r < 1:
        raise TypeError(f"get_peft_model: r must be a whole number above 0, and is {arguments.r!r}")
    targets, whole = _targets(model, arguments)
    whole += [name for name in arguments.modules_to_save or () if name not in whole]
    if held.num_new_tokens:
        whole += [name for name in _WHOLE if name not in whole]
        say_once(f"{held.num_new_tokens} tokens were added, so {' and '.join(_WHOLE)} learn with the adapter")
    experts = arguments.target_parameters is not None
    if experts and not set(_listed(arguments.target_parameters)) <= set(expert_parameters(model)):
        there = ", ".join(expert_parameters(model)) or "none"
        raise ConfigError(
            f"target_parameters {arguments.target_parameters!r} are no experts of this model; it has: {there}"
        )
    return Lora(
        rank=arguments.r,
        alpha=arguments.lora_alpha,
        dropout=arguments.lora_dropout,
        targets=tuple(targets),
        rslora=arguments.use_rslora,
        dora=arguments.use_dora,
        init=_start(arguments),
        layers_to_transform=_layers(model, arguments),
        experts=experts,
        modules_to_save=tuple(whole),
    )


def _start(arguments: AdapterArguments) -> Any:
    asked = arguments.init_lora_weights
    if asked not in _STARTS:
        raise ConfigError(
            f"init_lora_weights={asked!r} is not on the shelf; there are: {', '.join(map(str, _STARTS))}. A start that "
            "is neither zero nor a part of the weights would change the model before anything is learned"
        )
    start = _STARTS[asked]
    if arguments.loftq_config and start != "loftq":
        say_once('loftq_config is not used: init_lora_weights is not "loftq"')
    return start


def _layers(model: Any, arguments: AdapterArguments) -> tuple[int, ...]:
    count, last, named = len(decoder_layers(model)), arguments.finetune_last_n_layers, arguments.layers_to_transform
    if last is not None and named is not None:
        raise ConfigError("finetune_last_n_layers and layers_to_transform both choose layers; give one of them")
    if last is not None:
        return tuple(range(max(0, count - int(last)), count))
    return () if named is None else tuple(int(layer) for layer in _listed(named))


# ---- targets


def _targets(model: Any, arguments: AdapterArguments) -> tuple[list[str], list[str]]:
    """Return linear layers by name, and modules that learn whole."""
    asked, there = arguments.target_modules, _linears(model)
    if asked is None or asked == "all-linear":
        names = sorted(there)
    elif isinstance(asked, str):
        names = _matching(model, asked)
    else:
        names = list(asked)
    whole = [name for name in names if name in _WHOLE]
    if whole:
        say_once(f"{' and '.join(whole)} among target_modules learn whole, as modules_to_save")
    names = [name for name in names if name not in _WHOLE]
    if set(names) == set(PROJECTIONS) and not set(names) <= set(there):
        say_once(
            f"this model has no {', '.join(sorted(set(names) - set(there)))}; targets are {', '.join(sorted(there))}"
        )
        names = sorted(there)
    check_names(names, there, "target_modules: linear layer")
    for wanted, part in ((arguments.finetune_attention_modules, "attention"), (arguments.finetune_mlp_modules, "mlp")):
        if not wanted:
            inside = _inside(model, part)
            names = [name for name in names if name not in inside]
    if not names:
        raise ConfigError("get_peft_model: no linear layer is left to learn; name some in target_modules")
    return names, whole


def _linears(model: Any) -> set[str]:
    """Return the names of the decoder's linear layers, those under an adapter included."""
    if not hasattr(model, "peft_config"):
        return set(linear_names(model))
    layers: Any = decoder_layers(model)
    paths = [
        path.removesuffix(".base_layer") for path, module in layers.named_modules() if isinstance(module, nn.Linear)
    ]
    known = family_of(plain_model(model).config.model_type).lora_targets
    names = {path.rpartition(".")[2] for path in paths if "lora_" not in path}
    return names & set(known) if known else names


def _matching(model: Any, pattern: str) -> list[str]:
    """Return the names of linear layers whose paths a regular expression matches whole."""
    there, found = _linears(model), dict[str, set[bool]]()
    for path, _ in plain_model(model).named_modules():
        name = path.rpartition(".")[2]
        if name in there:
            found.setdefault(name, set()).add(re.fullmatch(pattern, path) is not None)
    mixed = [name for name, matches in found.items() if len(matches) == 2]
    if mixed:
        raise ConfigError(f"target_modules {pattern!r} takes {mixed[0]} in some layers and not in others; name the "
                          "modules, and the layers in layers_to_transform")  # fmt: skip
    return sorted(name for name, matches in found.items() if matches == {True})


def _inside(model: Any, part: str) -> set[str]:
    """Return the names of linear layers in the attention or the feed-forward block ("mlp") of the decoder layers."""
    family = family_of(plain_model(model).config.model_type)
    begin = f"{getattr(family, part)}."
    return {
        path.rpartition(".")[2]
        for layer in decoder_layers(model)
        for path, _ in layer.named_modules()
        if path.startswith(begin)
    }


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, (str, int)) else list(value)


# ---- an adapter that is there


def _compare(model: Any, asked: Lora) -> None:
    """Raise TypeError when the adapter on `model` is another one than `asked`, with what differs."""
    there = model.peft_config[LEARNING]
    wanted = {
        "r": (there.r, asked.rank),
        "lora_alpha": (there.lora_alpha, asked.alpha),
        "lora_dropout": (there.lora_dropout, asked.dropout),
        "target_modules": (set(there.target_modules or ()), set(asked.targets)),
        "use_rslora": (bool(there.use_rslora), asked.rslora),
        "use_dora": (bool(there.use_dora), asked.dora),
        "modules_to_save": (set(there.modules_to_save or ()), set(asked.modules_to_save)),
        "layers": (set(_listed(there.layers_to_transform or ())), set(asked.layers_to_transform)),
    }
    for name, (has, wants) in wanted.items():
        if has != wants:
            raise TypeError(
                f"this model has an adapter already, with {name} {has!r}, and {wants!r} is asked for: load the base "
                "again for another adapter, or call get_peft_model with the same arguments to go on with this one"
            )
