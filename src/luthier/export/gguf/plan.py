"""Every tensor of a GGUF file before anything is read: its name, its shape, and how it comes to be."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import ModelError
from luthier.export.gguf.architectures import ARCHITECTURES, obstacle
from luthier.export.gguf.cuts import Cut
from luthier.export.gguf.rope import factor_tensors

if TYPE_CHECKING:
    from luthier.export.gguf.rules import Rules
    from luthier.export.source import Source, Weight

_PREFIX = r"^(model\.)?(language_model\.)?(model\.)?"


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of a GGUF file."""

    name: str
    shape: tuple[int, ...]
    """As torch has it: llama.cpp counts dimensions from the other end."""
    read: Callable[[], Tensor]
    """Returns it in float32, exactly as it must stand in a file of form f32."""
    sources: tuple[str, ...] = ()
    """Names of the weights that it is made from."""


@dataclass(frozen=True, slots=True)
class _Piece:
    source: str
    cut: Cut
    place: int
    """In a stack of experts; -1 for what is no part of a stack."""


def planned(source: Source) -> list[Planned]:
    """Return the tensors of the GGUF file of `source`, in the order of their writing.

    Raises ModelError where there is no mapping, or where weights are missing, unknown or of another shape.
    """
    why = obstacle(source)
    if why:
        raise ModelError(why)
    pieces = _targets(source.weights, source.facts)
    _check_complete(source, pieces)
    factors = [
        Planned(name, tuple(tensor.shape), partial(_same, tensor))
        for name, tensor in factor_tensors(source.facts).items()
    ]
    return [*factors, *(_planned(source, name, pieces[name]) for name in sorted(pieces, key=_order))]


def targets_of(names: Iterable[str], facts: Any) -> dict[str, list[tuple[str, Cut]]]:
    """Return which weights become which tensors: target -> (source, cut) in the order of a stack."""
    return {
        target: [(piece.source, piece.cut) for piece in pieces] for target, pieces in _targets(names, facts).items()
    }


def _targets(names: Iterable[str], facts: Any) -> dict[str, list[_Piece]]:
    found: dict[str, list[_Piece]] = defaultdict(list)
    rules = ARCHITECTURES[facts.model_type].rules
    for name in names:
        if name == "lm_head.weight" and facts.tie_word_embeddings:
            continue
        for target, piece in _matched(name, rules, facts):
            found[target].append(piece)
    for pieces in found.values():
        pieces.sort(key=lambda piece: piece.place)
    return dict(found)


def _matched(name: str, rules: Rules, facts: Any) -> list[tuple[str, _Piece]]:
    for pattern, targets in rules.items():
        if match := re.fullmatch(pattern, re.sub(_PREFIX, "", name)):
            named = match.groupdict()
            place = int(named["expert"]) if "expert" in named else -1
            return [(target.format(*match.groups()), _Piece(name, cut, place)) for target, cut in targets.items()]
    raise ModelError(
        f"{name} of {facts.model_type} has no place in a GGUF file; export_format: merged works", code="model_unknown"
    )


def _planned(source: Source, name: str, pieces: list[_Piece]) -> Planned:
    first = source.weights[pieces[0].source]
    part = tuple(pieces[0].cut(torch.empty(first.shape, device="meta"), source.facts).shape)
    shape = part if pieces[0].place < 0 else (len(pieces), *part)
    parts = [(source.weights[piece.source], piece.cut) for piece in pieces]
    read = (
        partial(_read_one, *parts[0], source.facts)
        if pieces[0].place < 0
        else partial(_read_stack, parts, shape, source.facts)
    )
    return Planned(name, shape, read, tuple(piece.source for piece in pieces))


def _read_one(weight: Weight, cut: Cut, facts: Any) -> Tensor:
    return cut(weight.read(), facts).float().contiguous()


def _read_stack(parts: list[tuple[Weight, Cut]], shape: tuple[int, ...], facts: Any) -> Tensor:
    """Experts one behind the other, read one at a time."""
    stack = torch.empty(shape)
    for place, (weight, cut) in enumerate(parts):
        stack[place] = cut(weight.read(), facts)
    return stack


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _check_complete(source: Source, found: dict[str, list[_Piece]]) -> None:
    """Compare with what the model's own class has."""
    shell = _shell(source.facts)
    wanted = {
        target: pieces[0].cut(torch.empty(shell[pieces[0].source], device="meta"), source.facts).shape
        for target, pieces in _targets(shell, source.facts).items()
    }
    for name in sorted(wanted.keys() - found.keys()):
        raise ModelError(
            f"the weights have nothing for {name}; the model is damaged, get it again", code="model_damaged"
        )
    for name, pieces in found.items():
        have = _planned(source, name, pieces).shape
        if name not in wanted or have != tuple(wanted[name]):
            want = tuple(wanted[name]) if name in wanted else "no such tensor"
            raise ModelError(f"{name} would have shape {have}, the configuration says {want}", code="model_damaged")


def _shell(facts: Any) -> dict[str, tuple[int, ...]]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(facts)
    kept = dict(model.named_parameters())
    saved = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return {name: tuple(tensor.shape) for name, tensor in {**kept, **saved}.items()}


def _order(name: str) -> tuple[int, int, str]:
    """Embeddings, then blocks by number, then what is behind them."""
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return (0 if name.startswith("token_embd") else 2), 0, name
