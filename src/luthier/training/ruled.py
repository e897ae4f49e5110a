"""Which parameters an optimizer of ours treats how, by what they are in the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.core.anatomy import decoder_layers, linear_names, plain_model
from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.training.optimizers import BlockAdam, Order, Ruled
from luthier.tuning.targets import check_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.config.training import TrainConfig

RULED = {"galore_adamw": "galore", "apollo_adamw": "apollo", "muon": "muon", "adam_mini": "adam_mini", "badam": "adam"}
"""Optimizer -> the rule of the parameters that it is for; all others have AdamW's."""
BY_HEADS = ("q_proj", "k_proj", "qkv_proj", "query_key_value", "W_pack", "wqkv")
"""Linear layers whose outputs are heads of queries or keys."""


def rule_of_each(
    config: TrainConfig, parameters: dict[str, nn.Parameter], model: nn.Module | None
) -> Callable[[str], str]:
    """Return the rule of a parameter by its name; "" where the optimizer is not ours."""
    rule = RULED.get(config.optim)
    if _in_parts(config):
        rule = "adam_on_part"
    if rule is None:
        return lambda _: ""
    chosen = _CHOICES.get(rule, _every)(config, parameters, model)
    return lambda name: rule if name in chosen else "adam"


def settings_of(rule: str, config: TrainConfig) -> dict[str, Any]:
    """Return what a group of this rule holds."""
    more = _SETTINGS.get(rule)
    return {} if not rule else {"rule": rule, **_adam(config), **(more(config) if more is not None else {})}


def make_ruled(
    config: TrainConfig,
    groups: list[dict[str, Any]],
    parameters: dict[str, nn.Parameter],
    model: nn.Module | None,
) -> Ruled:
    """Return an optimizer of ours over groups that name their rules. Raises ConfigError for badam without layers."""
    if _in_parts(config):
        _keep_tables(parameters, model)
    elif config.optim == "badam":
        return _by_blocks(config, groups, parameters, model)
    facts = _parts(parameters, model) if config.optim == "adam_mini" else {}
    return Ruled(groups, facts)


# ---- settings


def _adam(c: TrainConfig) -> dict[str, Any]:
    return {"betas": (c.adam_beta1, c.adam_beta2), "eps": c.adam_epsilon}


def _galore(c: TrainConfig) -> dict[str, Any]:
    return {
        "rank": c.galore_rank,
        "interval": c.galore_update_interval,
        "scale": c.galore_scale,
        "projection": c.galore_proj_type,
    }


def _apollo(c: TrainConfig) -> dict[str, Any]:
    return {
        "rank": c.apollo_rank,
        "interval": c.apollo_update_interval,
        "scale": c.apollo_scale,
        "projection": c.apollo_proj_type,
        "per": c.apollo_scale_type,
        "drawn": c.apollo_proj == "random",
    }


def _parts_of(c: TrainConfig) -> dict[str, Any]:
    if c.weight_decay:
        say_once("badam_mode: ratio has no weight decay: entries that do not learn would only fade")
    return {
        "interval": c.badam_switch_interval,
        "share": c.badam_update_ratio,
        "scattered": c.badam_mask_mode == "scatter",
        "weight_decay": 0.0,
    }


def _in_parts(c: TrainConfig) -> bool:
    """Tell whether a share of every parameter learns at a time."""
    return c.optim == "badam" and c.badam_mode == "ratio"


_SETTINGS: dict[str, Callable[[TrainConfig], dict[str, Any]]] = {
    "galore": _galore,
    "apollo": _apollo,
    "adam_on_part": _parts_of,
}


# ---- which parameters


def _every(_: TrainConfig, parameters: dict[str, nn.Parameter], __: nn.Module | None) -> set[str]:
    return set(parameters)


def _targets(
    setting: str, asked: Callable[[TrainConfig], tuple[str, ...]]
) -> Callable[[TrainConfig, dict[str, nn.Parameter], nn.Module | None], set[str]]:
    """Return what finds the weights of the linear layers that `setting` names, or those inside a part that it names."""

    def find(config: TrainConfig, parameters: dict[str, nn.Parameter], model: nn.Module | None) -> set[str]:
        assert model is not None, "this optimizer looks at the model"
        there, names = linear_names(_inner(model)), asked(config)
        paths = {name: _inside_layer(name) for name, p in parameters.items() if p.ndim == 2}
        paths = {name: path for name, path in paths.items() if path and path[-1] in there}
        known = {*there, *(part for path in paths.values() for part in path if not part.isdecimal())}
        check_names([name for name in names if name != "all"], known, f"{setting}: linear layer")
        return {name for name, path in paths.items() if "all" in names or {*names} & {*path}}

    return find


def _inside_layer(name: str) -> list[str]:
    """Return the path of a parameter's module inside its decoder layer.

    >>> _inside_layer("model.layers.0.mlp.up_proj.weight")
    ['mlp', 'up_proj']
    """
    parts = name.split(".")[:-1]
    return parts[next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts)) + 1 :]


def _matrices(_: TrainConfig, parameters: dict[str, nn.Parameter], model: nn.Module | None) -> set[str]:
    """Return the matrices that are neither embedding nor head."""
    tables = _tables(model)
    return {name for name, p in parameters.items() if p.ndim == 2 and p not in tables}


def _tables(model: nn.Module | None) -> set[nn.Parameter]:
    if model is None:
        return set()
    plain = plain_model(_inner(model))
    ends = [plain.get_input_embeddings(), plain.get_output_embeddings()]
    return {p for end in ends if end is not None for p in end.parameters()}


def _keep_tables(parameters: dict[str, nn.Parameter], model: nn.Module | None) -> None:
    """Let embedding and head stay as they are, which BAdam does not learn."""
    tables = _tables(model)
    kept = [name for name, p in parameters.items() if p in tables]
    for name in kept:
        parameters[name].requires_grad_(False)
    if kept:
        say_once(f"badam: {', '.join(kept)} stay as they are")


def _inner(model: nn.Module) -> nn.Module:
    """Return the transformers or peft model inside a policy."""
    inner = getattr(model, "model", None)
    return inner if isinstance(inner, nn.Module) and not hasattr(model, "config") else model


_CHOICES: dict[str, Callable[[TrainConfig, dict[str, nn.Parameter], nn.Module | None], set[str]]] = {
    "galore": _targets("galore_target", lambda c: c.galore_target),
    "apollo": _targets("apollo_target", lambda c: c.apollo_target),
    "muon": _matrices,
}


# ---- parts of parameters


def _parts(parameters: dict[str, nn.Parameter], model: nn.Module | None) -> dict[nn.Parameter, dict[str, Any]]:
    """Return the blocks of Adam-mini: heads of queries and keys, else the weights of one output or one token.

    Source: arXiv:2406.16793, section 2.3 and its partition for language models.
    """
    from transformers.pytorch_utils import Conv1D

    heads, turned = 0, set[nn.Parameter]()
    if model is not None:
        text = plain_model(_inner(model)).config.get_text_config()
        heads = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        turned = {m.weight for m in model.modules() if isinstance(m, Conv1D)}
    found: dict[nn.Parameter, dict[str, Any]] = {}
    for name, p in parameters.items():
        if p.ndim < 2:
            continue
        rows = p.shape[1] if p in turned else p.numel() // p.shape[-1]
        is_by_heads = name.split(".")[-2:-1] and name.split(".")[-2] in BY_HEADS
        found[p] = {
            "blocks": rows // heads if is_by_heads and heads and rows % heads == 0 else rows,
            "transposed": p in turned,
        }
    return found


def _by_blocks(
    config: TrainConfig, groups: list[dict[str, Any]], parameters: dict[str, nn.Parameter], model: nn.Module | None
) -> BlockAdam:
    """Return BAdam over decoder layers; what lies outside of them stays as it is."""
    assert model is not None, "this optimizer looks at the model"
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ConfigError("optim: badam learns one layer at a time, which several processes cannot agree on; use one")
    learning = set(parameters.values())
    layers = [[p for p in layer.parameters() if p in learning] for layer in decoder_layers(_inner(model))]
    blocks = [layer for layer in layers if layer]
    if not blocks:
        raise ConfigError("optim: badam trains decoder layers, and none learns here; take adamw_torch")
    start = config.badam_start_block
    if start is not None and start >= len(blocks):
        raise ConfigError(f"badam_start_block is {start}, but {len(blocks)} layers learn; the first one is 0")
    inside = {p for block in blocks for p in block}
    outside = [name for name, p in parameters.items() if p not in inside]
    if outside:
        say_once(f"badam: {', '.join(outside[:3])}{' …' if len(outside) > 3 else ''} lie outside the layers and stay")
    order = Order(config.badam_switch_mode, len(blocks), start, config.seed)
    return BlockAdam(groups, blocks, order, config.badam_switch_interval)
