"""Lend kernels and packing to an ordinary transformers or peft model, so that foreign trainers train it faster.

`lend` changes instances, never classes, and `take_back` makes the plain model again. What comes out of `forward` is
what the plain model returns: padded batches are laid together without padding and answered in their own shape, and a
loss or TRL's fused fields come without a logits tensor. Calls that this module does not know go the plain way:
generation with a cache, hidden states, attentions, router logits, logits without labels, labels in evaluation mode.
"""

from __future__ import annotations

import functools
import inspect
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from luthier.core.anatomy import angles_move_from, backbone_of, packing_of, plain_model
from luthier.core.errors import ModelError
from luthier.core.log import say_once
from luthier.kernels.cpu import Heap
from luthier.models.lent_head import Fused, fused_answer, fused_settings, is_plain_head, learned, wanted
from luthier.models.lent_rows import Rows, rows_of
from luthier.models.patch import FOREST, install, plain_attention, register_attention, remove

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENT = "_luthier_lent"
_TOP = "_luthier_top"
_SCORES = "luthier_fused"
_THROUGH = torch.zeros(1, 1, 1, 1)
_KNOWN = frozenset({"input_ids", "attention_mask", "position_ids", "labels", "shift_labels", "num_items_in_batch"})
_BESIDE = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "seq_lengths"})
"""What flattening collators hand over for kernels of their own; it says what positions say."""
_HARMLESS: dict[str, tuple[Any, ...]] = {"use_cache": (False,), "return_dict": (True,), "logits_to_keep": (0,)}


@dataclass
class _Lent:
    """What a lent model had before."""

    attention: str
    below: Any
    """The forward that lay in the instance; None for that of its class."""
    names: tuple[str, ...]
    """Names of positional arguments."""
    modules: int = 0
    """How many there were when kernels were put in."""
    heap: Heap = field(default_factory=Heap)
    active: bool = True


def lend(model: nn.Module) -> list[str]:
    """Lend kernels and packing to `model`, before its trainer starts; return one line for each thing that was put in.

    A second call puts kernels into what was added since, such as the layers of an adapter. Raises ModelError for a
    model that is already prepared for training in a mixed precision.
    """
    plain = plain_model(model)
    register_attention()
    state: _Lent | None = plain.__dict__.get(_LENT)
    if state is None:
        if "_original_forward" in plain.__dict__:
            raise ModelError("this model is already prepared for training by accelerate; lend it before that")
        names = tuple(inspect.signature(type(plain).forward).parameters)[1:]
        state = _Lent(plain.config._attn_implementation, plain.__dict__.get("forward"), names)
        plain.__dict__[_LENT] = state
        plain.forward = types.MethodType(_forward_of(plain), plain)
    state.active = True
    plain.train = types.MethodType(_train, plain)
    if packing_of(plain.config) == "forest" and state.attention != FOREST:
        plain.set_attn_implementation(FOREST)
    lines = install(model)
    state.modules = _count(plain)
    _settle(plain)
    return [*lines, _what_rows_do(plain)]


def take_back(model: nn.Module) -> None:
    """Make `model` the plain transformers or peft model again; a trainer that holds it goes on the plain way."""
    plain = plain_model(model)
    state: _Lent | None = plain.__dict__.get(_LENT)
    if state is None:
        return
    remove(plain)
    plain.set_attn_implementation(plain_attention(plain.config) if state.attention == FOREST else state.attention)
    state.active = False
    plain.__dict__.pop("train", None)
    while (below := getattr(_function(plain.forward), _TOP, None)) is not None:
        plain.forward = below
    if _function(plain.forward) is not None and getattr(_function(plain.forward), _LENT, False):
        del plain.__dict__["forward"], plain.__dict__[_LENT]
        if state.below is not None:
            plain.forward = state.below


def _forward_of(plain: Any) -> Any:
    """Return the forward function for a model, with the signature that trainers and `generate` look at."""
    way = _pooled if isinstance(plain, GenericForSequenceClassification) else _causal
    forward = functools.wraps(type(plain).forward)(lambda self, *args, **kwargs: way(self, *args, **kwargs))
    setattr(forward, _LENT, True)
    return forward


def _function(forward: Any) -> Any:
    return getattr(forward, "__func__", None)


def _count(model: Any) -> int:
    return sum(1 for _ in model.modules())


def _what_rows_do(plain: Any) -> str:
    rows = "laid together without padding, equal beginnings computed once"
    if packing_of(plain.config) != "forest":
        rows = f"padded as they come, for a {plain.config.model_type} model takes no packed ones"
    return f"rows: {rows}; the head only where labels are"


# ---- staying on top of what trainers lay over a forward


def _train(self: Any, mode: bool = True) -> Any:  # noqa: FBT001
    """Switch the mode, as every trainer does before a step, and look after what it laid over the model."""
    nn.Module.train(self, mode)
    state: _Lent = self.__dict__[_LENT]
    if state.active:
        state.heap.tidy()
        if (count := _count(self)) != state.modules:
            install(self)
            state.modules = count
        _settle(self)
    return self


def _settle(plain: Any) -> None:
    """Where TRL's fused head lies over the model, lay a translator over it: calls of that head come through to us."""
    below = plain.forward
    is_ours = getattr(_function(below), _LENT, False) or getattr(_function(below), _TOP, None) is not None
    fused = None if is_ours else fused_settings(below)
    if fused is None:
        return

    @functools.wraps(type(plain).forward)
    def top(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fused_lm_head") and self.__dict__[_LENT].active and _can_score(self, kwargs):
            del kwargs["fused_lm_head"]
            kwargs[_SCORES] = fused
        return below(*args, **kwargs)

    setattr(top, _TOP, below)
    plain.forward = types.MethodType(top, plain)


def _can_score(plain: Any, kwargs: dict[str, Any]) -> bool:
    routes = kwargs.get("output_router_logits") or getattr(plain.config, "output_router_logits", False)
    if routes:
        say_once("the balance loss of experts is the trainer's own, so its head stays, too")
    return not routes and is_plain_head(plain)


# ---- the forward passes


def _below(self: Any, kwargs: dict[str, Any]) -> Any:
    """Return what the model without us returns."""
    state: _Lent = self.__dict__[_LENT]
    call = functools.partial(type(self).forward, self) if state.below is None else state.below
    if not (state.active and kwargs.get("output_attentions")):
        return call(**kwargs)
    with _own_attention(self, state):
        return call(**kwargs)


@contextmanager
def _own_attention(plain: Any, state: _Lent) -> Iterator[None]:
    """Compute attention as the model did before: it may return the weights."""
    lent = plain.config._attn_implementation
    plain.config._attn_implementation = plain_attention(plain.config) if state.attention == FOREST else state.attention
    try:
        yield
    finally:
        plain.config._attn_implementation = lent


def _causal(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a language model."""
    state: _Lent = self.__dict__[_LENT]
    kwargs |= dict(zip(state.names, args, strict=False))
    fused: Fused | None = kwargs.pop(_SCORES, None)
    if fused is None and kwargs.get("fused_lm_head") and state.active and _can_score(self, kwargs):
        fused = fused_settings(state.below)
        if fused is not None:
            del kwargs["fused_lm_head"]
    if fused is not None:
        return _scored(self, kwargs, fused)
    learns = self.training and (kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None)
    ordinary = self.loss_type in (None, "ForCausalLM") and not hasattr(self, "_loss_function")
    if not (state.active and learns and ordinary and is_plain_head(self) and _is_known(self, kwargs)):
        return _below(self, kwargs)
    again = {name: value for name, value in kwargs.items() if name not in ("labels", "shift_labels")}
    asked = wanted(kwargs.pop("labels", None), kwargs.pop("shift_labels", None))
    num_items = kwargs.pop("num_items_in_batch", None)
    hidden_ND = _hidden(self, kwargs, asked.read_BT)
    return learned(self, hidden_ND, asked, num_items, lambda: _below(self, again | {"return_dict": True}).logits)


def _scored(self: Any, kwargs: dict[str, Any], fused: Fused) -> Any:
    """Return what TRL's fused head would."""
    asked = wanted(kwargs.pop("labels", None), kwargs.pop("shift_labels", None))
    num_items = kwargs.pop("num_items_in_batch", None)
    return fused_answer(self, _hidden(self, kwargs, asked.read_BT), asked, fused, num_items)


def _pooled(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a sequence classifier: it reads one place of each row, the last that is no padding."""
    state: _Lent = self.__dict__[_LENT]
    kwargs |= dict(zip(state.names, args, strict=False))
    pad, ids = self.config.get_text_config().pad_token_id, kwargs.get("input_ids")
    if not state.active or pad is None or kwargs.get("labels") is not None or not _is_known(self, kwargs):
        return _below(self, kwargs)
    assert ids is not None
    last_B = (torch.arange(ids.shape[1], device=ids.device) * (ids != pad)).argmax(-1)
    read_BT = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, last_B[:, None], value=True)
    hidden_BD = _packed(self, kwargs, read_BT)
    if hidden_BD is None:
        return _below(self, kwargs)
    return SequenceClassifierOutputWithPast(logits=self.score(hidden_BD))


def _is_known(self: Any, kwargs: dict[str, Any]) -> bool:
    """Tell whether a call holds nothing but a batch."""
    config = self.config
    asks = any(getattr(config, f"output_{what}", False) for what in ("hidden_states", "attentions", "router_logits"))
    if asks or not getattr(config, "return_dict", True) or kwargs.get("input_ids") is None:
        return False
    if kwargs.get("use_cache") is None and not self.training and getattr(config, "use_cache", False):
        return False
    for name, value in kwargs.items():
        known = name in _KNOWN or name in _BESIDE or value is None or value is False
        if not known and not (name in _HARMLESS and value in _HARMLESS[name]):
            return False
    mask = kwargs.get("attention_mask")
    return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)


def _packed(self: Any, kwargs: dict[str, Any], read_BT: Tensor) -> Tensor | None:
    """Return hidden states [N, D] at the places that are read, without padding; None where rows are not for packing."""
    if packing_of(self.config) != "forest":
        return None
    mask = kwargs.get("attention_mask")
    rows: Rows | None = rows_of(kwargs["input_ids"], mask, kwargs.get("position_ids"), read_BT)
    moves_from = angles_move_from(self.config)
    if rows is None or (moves_from is not None and int(rows.position_ids.max()) >= moves_from):
        return None
    hidden_1LD: Tensor = backbone_of(self)(
        input_ids=rows.input_ids,
        position_ids=rows.position_ids,
        attention_mask=_THROUGH.to(rows.input_ids.device),
        use_cache=False,
        forest=rows.spans,
    ).last_hidden_state
    return hidden_1LD[0].index_select(0, rows.rows)


def _hidden(self: Any, kwargs: dict[str, Any], read_BT: Tensor) -> Tensor:
    """Return hidden states [N, D] at the places that are read, of packed rows or of the batch as it came."""
    packed_ND = _packed(self, kwargs, read_BT) if _is_known(self, kwargs) else None
    if packed_ND is not None:
        return packed_ND
    inputs = {name: value for name, value in kwargs.items() if value is not None}
    hidden_BTD: Tensor = backbone_of(self)(**{**inputs, "use_cache": False}).last_hidden_state
    return hidden_BTD[read_BT]
