"""Frozen linear layers in 4 or 8 bits: put in for those of a model, measured, made dense again, and merged into.

Shapes: T rows, I inputs, O outputs.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import decoder_layers, plain_model, routers_of
from luthier.kernels.int8_linear import INT8_LINEAR, Int8Weight
from luthier.kernels.nf4 import NF4_LINEAR, Nf4Weight
from luthier.kernels.op import Op

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Form:
    """One way to keep a weight narrow."""

    op: Op
    of: Callable[[Tensor, bool], Any]
    """Quantizes a dense matrix [O, I]; the second argument asks for scales in 8 bits, where the form has that."""


def _four_bits(kind: str) -> Form:
    return Form(NF4_LINEAR, lambda weight_OI, double: Nf4Weight.of(weight_OI, double=double, kind=kind))


FORMS = {
    "nf4": _four_bits("nf4"),
    "fp4": _four_bits("fp4"),
    "int8": Form(INT8_LINEAR, lambda weight_OI, double: Int8Weight.of(weight_OI)),
}
"""Value of the setting `quantization` -> how a weight is kept."""


class QuantizedLinear(nn.Linear):
    """A linear layer that never learns; its weight exists as codes and scales, and dense only in passing."""

    def __init__(self, narrow: Any, bias_O: nn.Parameter | None, kind: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = narrow.shape
        self.narrow, self.kind, self.dtype = narrow, kind, dtype
        self.backend: str | None = None
        """Name of the backend that must compute; None takes the fastest."""
        self.transposed = False
        """Whether it stands for a layer that keeps its weight as [I, O]."""
        self.register_parameter("bias", bias_O)
        self._is_hf_initialized = True

    @classmethod
    def of(cls, linear: nn.Module, kind: str, *, double: bool, dtype: torch.dtype, weight: Tensor | None = None) -> Any:
        """Quantize a linear layer, or a Conv1D of transformers; `weight` replaces what it holds."""
        source: Any = linear
        dense = source.weight if weight is None else weight
        transposed = not isinstance(linear, nn.Linear)
        narrow = FORMS[kind].of(dense.detach().t().contiguous() if transposed else dense.detach(), double)
        made = cls(narrow, source.bias, kind, dtype)
        made.transposed = transposed
        return made.train(linear.training)

    @property
    def weight(self) -> nn.Parameter:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The dense weight [O, I], made anew: what is written into it is lost."""
        return nn.Parameter(self.narrow.rows(0, self.out_features, self.dtype), requires_grad=False)

    @property
    def quantization(self) -> str:
        """The setting that it was made with; what looks for narrow layers looks here."""
        return self.kind

    def forward(self, input: Tensor) -> Tensor:
        """Return x W' + bias in the dtype of `input`."""
        op = FORMS[self.kind].op
        call = next((b.call for b in op.backends if b.name == self.backend), None) or op.choose(input.device.type)[1]
        return call(input, self.narrow, self.bias)

    def dense(self, dtype: torch.dtype) -> nn.Module:
        """Return the ordinary layer that this one stands for."""
        from transformers.pytorch_utils import Conv1D

        weight_OI = self.narrow.rows(0, self.out_features, dtype)
        if self.transposed:
            made: Any = Conv1D(self.out_features, self.in_features)
            made.weight = nn.Parameter(weight_OI.t().contiguous(), requires_grad=False)
        else:
            made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
            made.weight = nn.Parameter(weight_OI, requires_grad=False)
        made.bias = None if self.bias is None else nn.Parameter(self.bias.to(dtype), requires_grad=False)
        return made.train(self.training)

    def extra_repr(self) -> str:
        """Return sizes and form for people."""
        return f"{super().extra_repr()}, {self.kind}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # noqa: FBT001  torch's signature
        """Move codes and scales; a change of dtype concerns activations alone."""
        super()._apply(fn, recurse)
        like = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if like.is_floating_point():
            self.dtype = like.dtype
        if like.device != self.device:
            empty = self.device.type == "meta"
            self._hold(
                {
                    name: torch.empty_like(part, device=like.device) if empty else part.to(like.device)
                    for name, part in self.narrow.parts().items()
                }
            )
        return self

    def _hold(self, parts: dict[str, Tensor]) -> None:
        unpacked = {"packed": None} if isinstance(self.narrow, Int8Weight) else {}
        self.narrow = replace(self.narrow, **parts, **unpacked)

    @property
    def device(self) -> torch.device:
        """Where codes and scales lie."""
        held = self.narrow
        if isinstance(held, Int8Weight):
            return torch.device("cpu") if held.codes_OK is None else held.codes_OK.device
        return held.codes_B.device

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: FBT001  torch's
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{name}": part for name, part in self.narrow.parts().items()})

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: Any, missing_keys: Any, unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:  # fmt: skip
        own, found = self.narrow.parts(), {}
        for name, part in own.items():
            given = state_dict.get(f"{prefix}{name}")
            if given is None:
                missing_keys.append(f"{prefix}{name}")
            elif given.shape != part.shape or given.dtype != part.dtype:
                error_msgs.append(f"{prefix}{name} has {tuple(given.shape)}, expected {tuple(part.shape)}")
            else:
                found[name] = given.to(part.device)
        if len(found) == len(own):
            self._hold(found)
        rest = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in own}
        arguments = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        super()._load_from_state_dict(rest, prefix, *arguments)


# ---- a whole model


def targets(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of the decoder by path: embeddings, norms, head and routers are not among them."""
    from transformers.pytorch_utils import Conv1D

    plain = plain_model(model)
    layers = decoder_layers(plain)
    # A gate with one output is a router of a kind. Rounding what chooses experts moves whole tokens.
    routers = {id(router) for router in routers_of(plain)}
    start = next(path for path, module in plain.named_modules() if module is layers)
    wanted: list[tuple[str, Any]] = [
        (path, module) for path, module in layers.named_modules() if type(module) in (nn.Linear, Conv1D)
    ]
    return {
        f"{start}.{path}": module
        for path, module in wanted
        if id(module) not in routers and min(module.weight.shape) > 1
    }


def quantize(model: nn.Module, kind: str, *, double: bool, dtype: torch.dtype) -> None:
    """Replace the linear layers of the decoder, one by one, by narrow ones that compute in `dtype`.

    On the device "meta" only shapes are made.
    """
    for path, module in targets(model).items():
        put(model, path, QuantizedLinear.of(module, kind, double=double, dtype=dtype))


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def is_of_bitsandbytes(layer: nn.Module) -> bool:
    """Tell whether a layer is one of bitsandbytes', whose `weight` holds codes."""
    return type(layer).__module__.startswith("bitsandbytes.")


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield path and layer of every narrow layer, those of bitsandbytes included."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear) or is_of_bitsandbytes(module):
            yield path, module


def quantized_size(model: nn.Module) -> tuple[int, int]:
    """Return (weights that are kept narrow, bytes of their codes and scales)."""
    layers = [layer for _, layer in quantized_layers(model)]
    return sum(layer.in_features * layer.out_features for layer in layers), sum(_bytes_of(layer) for layer in layers)


def _bytes_of(layer: Any) -> int:
    if isinstance(layer, QuantizedLinear):
        return layer.narrow.num_bytes
    held, state = [layer.weight], getattr(layer.weight, "quant_state", None)
    if state is not None:
        nested = getattr(state, "state2", None)
        held += [state.absmax, *([] if nested is None else [nested.absmax])]
    held += [part for name in ("CB", "SCB") if (part := getattr(layer.weight, name, None)) is not None]
    return sum({part.data_ptr(): part.nbytes for part in held}.values())


def make_dense(model: Any, dtype: torch.dtype) -> Any:
    """Replace every narrow layer by what it stands for, the weights that an adapter on top of it was trained on."""
    if any(not isinstance(layer, QuantizedLinear) for _, layer in quantized_layers(model)):
        return model.dequantize(dtype=dtype)
    for path, layer in list(quantized_layers(model)):
        put(model, path, layer.dense(dtype))
    return model


def compute_in_torch(model: nn.Module) -> None:
    """Let narrow layers compute in plain torch."""
    for _, layer in quantized_layers(model):
        layer.backend = "torch"


def make_mergeable(model: nn.Module) -> int:
    """Let adapters over narrow layers merge: `merge` makes the layer below dense first. Returns how many there are.

    peft writes into `weight`, which a narrow layer makes anew each time; without this a merge would do nothing.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = 0
    for each in model.modules():
        module: Any = each
        below = getattr(module, "base_layer", None) if isinstance(module, BaseTunerLayer) else None
        if isinstance(below, QuantizedLinear) and hasattr(type(module), "merge"):
            module.merge = types.MethodType(_merge_into_dense, module)
            found += 1
    return found


def _merge_into_dense(self: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(self.base_layer, QuantizedLinear):
        self.base_layer = self.base_layer.dense(self.base_layer.dtype)
    type(self).merge(self, *args, **kwargs)
