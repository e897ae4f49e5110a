"""Names that settings give to parts of a model, checked against the parts that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.anatomy import family_of, linear_names, plain_model
from luthier.core.errors import ConfigError
from luthier.core.registry import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

MOST_NAMES_SHOWN = 20


def check_names(asked: Iterable[str], there: Iterable[str], what: str) -> None:
    """Raise ConfigError for a name that is not among those there, with the nearest one and the list."""
    known = sorted(set(there))
    for name in asked:
        if name not in known:
            more = ", …" if len(known) > MOST_NAMES_SHOWN else ""
            raise ConfigError(
                f"{what} {name!r} is not in this model{did_you_mean(name, known) or ';'} "
                f"it has {', '.join(known[:MOST_NAMES_SHOWN])}{more}"
            )


def choose_linears(model: nn.Module, asked: Sequence[str], setting: str) -> dict[str, int]:
    """Return name -> smaller side of the linear layers that `setting` asks for; "all" is every one but the head.

    Raises ConfigError when a name is no linear layer of `model`.
    """
    there = linear_names(model)
    chosen = sorted(there) if tuple(asked) == ("all",) else list(asked)
    check_names(chosen, there, f"{setting}: linear layer")
    return {name: there[name] for name in chosen}


def module_names(model: nn.Module) -> set[str]:
    """Return the last part of the path of every module; numbers in lists are no names."""
    names = {path.rpartition(".")[2] for path, _ in model.named_modules() if path}
    return {name for name in names if not name.isdigit()}


def has_tied_head(model: nn.Module) -> bool:
    """Tell whether the head is the input embedding."""
    plain = plain_model(model)
    head = plain.get_output_embeddings()
    return head is not None and head.weight is plain.get_input_embeddings().weight


def has_values(model: nn.Module) -> bool:
    """Tell whether the weights of `model` are there, and not only their shapes as in an estimate."""
    return plain_model(model).device.type != "meta"


def experts_of(model: nn.Module) -> tuple[str, ...]:
    """Return the parameters that hold the weights of experts, by path inside a layer; empty for dense models."""
    return family_of(plain_model(model).config.model_type).experts


def check_rank(rank: int, sizes: dict[str, int], setting: str) -> None:
    """Raise ConfigError when a rank is above the smaller side of a layer."""
    for name, size in sizes.items():
        if rank > size:
            raise ConfigError(f"{setting} {rank} is above the size of {name} ({size}); lower it")
