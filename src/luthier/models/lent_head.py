"""What a lent model answers without a logits tensor: its loss, and the fields that TRL's fused head has.

Shapes: B rows of T places; N places with a label; D hidden; V vocabulary.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from luthier.core.anatomy import at_work
from luthier.kernels.head_scores import FIELDS, Head, head_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IGNORED = -100
_SETTINGS = {"temperature", "cast_lm_head_to_fp32", "outputs"}


@dataclass(frozen=True, slots=True)
class Fused:
    """How TRL's fused head of a model was asked for."""

    temperature: float
    in_float32: bool
    reads: frozenset[str]
    answer: Any
    """The class of its answers."""


def fused_settings(forward: Any) -> Fused | None:
    """Return the settings of the fused head that TRL laid over a model's `forward`; None where there is none.

    They are the free variables of the function that it binds to the instance. Whatever wraps that function is looked
    through; an unknown form of it is left to TRL.
    """
    function = getattr(forward, "__func__", forward)
    while function is not None:
        if inspect.isfunction(function):
            found = inspect.getclosurevars(function).nonlocals
            if set(found) >= _SETTINGS:
                answer = function.__globals__.get("FusedCausalLMOutput")
                reads = frozenset(found["outputs"])
                if answer is None or not reads <= set(FIELDS):
                    return None
                return Fused(found["temperature"], found["cast_lm_head_to_fp32"], reads | {"log_probs"}, answer)
        function = getattr(function, "__wrapped__", None)
    return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which places predict something, and what."""

    read_BT: Tensor
    """[B, T] bool, among the places of the input."""
    targets_N: Tensor
    shape: tuple[int, int]
    """Of what is answered: one place less than the input where labels are shifted here."""

    def spread(self, x_N: Tensor) -> Tensor:
        """Return values of predictions at their places, 0 elsewhere."""
        mask = self.read_BT[:, : self.shape[1]]
        return x_N.new_zeros(self.shape).masked_scatter(mask, x_N)


def wanted(labels: Tensor | None, shift_labels: Tensor | None) -> Wanted:
    """Return what labels [B, T] ask for; `shift_labels` stand where the prediction is made, others one place behind."""
    if shift_labels is not None:
        read_BT = shift_labels != IGNORED
        return Wanted(read_BT, shift_labels[read_BT], (shift_labels.shape[0], shift_labels.shape[1]))
    assert labels is not None
    read_BT = F.pad(labels[:, 1:] != IGNORED, (0, 1))
    return Wanted(read_BT, labels[:, 1:][read_BT[:, :-1]], (labels.shape[0], labels.shape[1] - 1))


def is_plain_head(model: Any) -> bool:
    """Tell whether the output head is a linear layer that nothing sits on."""
    return type(at_work(model.get_output_embeddings())) is nn.Linear


def score(
    model: Any, hidden_ND: Tensor, targets_N: Tensor, reads: frozenset[str], *, fused: Fused | None = None
) -> Mapping[str, Tensor]:
    """Return what `reads` names of the head's predictions, [N] each."""
    layer, config = at_work(model.get_output_embeddings()), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    temperature = 1.0 if fused is None else fused.temperature
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
    if fused is not None and fused.in_float32:
        dtype = torch.float32
    head = Head(
        layer.weight.to(dtype),
        None if layer.bias is None else layer.bias.to(dtype),
        scale / temperature,
        None if softcap is None else softcap / temperature,
    )
    with torch.autocast(device, enabled=False):
        return head_scores(hidden_ND.to(dtype), head, targets_N, reads)


def fused_answer(model: Any, hidden_ND: Tensor, asked: Wanted, fused: Fused, num_items: Any) -> Any:
    """Return what TRL's fused head returns: fields [B, T-1], 0 where no label is."""
    found = score(model, hidden_ND, asked.targets_N, fused.reads, fused=fused)
    fields = {name: asked.spread(x_N) for name, x_N in found.items()}
    count = max(1, len(asked.targets_N)) if num_items is None else num_items
    loss = -found["log_probs"].sum() / count
    return fused.answer(loss=loss, label_mask=asked.read_BT[:, : asked.shape[1]], **fields)


class Learned(CausalLMOutputWithPast):
    """A loss; the logits are made by a plain forward pass when somebody reads them, and are no item of the mapping."""

    @property
    def logits(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return logits [B, T, V]."""
        make: Any = getattr(self.loss, _MAKE, None)
        found = self.__dict__.get("_logits")
        if found is None and make is not None:
            found = self.__dict__["_logits"] = make()
        return found

    @logits.setter
    def logits(self, value: Tensor | None) -> None:
        self.__dict__["_logits"] = value


_MAKE = "_luthier_logits"


def learned(model: Any, hidden_ND: Tensor, asked: Wanted, num_items: Any, make: Callable[[], Tensor]) -> Learned:
    """Return the mean loss as transformers computes it; `make` returns the logits.

    It goes with the loss, because accelerate makes a new output of the items of an old one.
    """
    logp_N = score(model, hidden_ND, asked.targets_N, frozenset({"log_probs"}))["log_probs"]
    loss = -logp_N.sum() / (len(logp_N) if num_items is None else num_items)
    setattr(loss, _MAKE, make)
    return Learned(loss=loss)  # pyright: ignore[reportArgumentType]
