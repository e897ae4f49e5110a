"""Load a model whose linear layers become narrow one by one as they are read, and say whose layers compute them.

The weights come through transformers' own loader, which knows every rename; its quantizer interface hands over each
tensor as soon as it is read. So memory holds what is narrow already and one tensor of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import first_line, logger, say_once
from luthier.kernels.nf4 import BLOCK
from luthier.models.quantized import FORMS, QuantizedLinear, put, quantize, quantized_layers, quantized_size, targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luthier.config.schema import ModelConfig
    from luthier.models.device import Placement

METHOD = "luthier"
_BYTES = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class Choice:
    """How the linear layers are kept, whose code computes them, and why."""

    kind: str
    double: bool
    backend: str
    reason: str

    @property
    def form(self) -> str:
        """The form in words."""
        return f"{self.kind} with 8-bit scales" if self.double and self.kind != "int8" else self.kind

    def settings(self, dtype: torch.dtype) -> Any:
        """Return what transformers' loader is given."""
        if self.backend == METHOD:
            return Settings(kind=self.kind, double=self.double)  # pyright: ignore[reportCallIssue]
        from transformers import BitsAndBytesConfig

        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=dtype,
        )


def choose(config: ModelConfig, placement: Placement) -> Choice | None:
    """Return how `config` wants the linear layers kept here; None for as they are.

    Raises ConfigError, before anything is loaded, when this machine cannot do it.
    """
    if config.quantization == "none":
        return None
    device, asked = placement.device.type, config.quantization_backend
    backend, reason = _BACKENDS[asked](device)
    return Choice(config.quantization, config.double_quantization, backend, reason)


def _automatic(device: str) -> tuple[str, str]:
    if device == "cpu":
        return METHOD, "its products are measured to be as fast as bitsandbytes' on a processor, or faster"
    obstacle = bitsandbytes_obstacle(device)
    if obstacle is None:
        return "bitsandbytes", f"its layers are proven on {device}; luthier's have not been timed there"
    return METHOD, obstacle


def _theirs(device: str) -> tuple[str, str]:
    obstacle = bitsandbytes_obstacle(device)
    if obstacle is not None:
        raise ConfigError(
            f"quantization_backend: bitsandbytes cannot be used here: {obstacle}; set quantization_backend: luthier, "
            "whose 4-bit codes are the same"
        )
    return "bitsandbytes", "as asked"


_BACKENDS = {"auto": _automatic, "luthier": lambda device: (METHOD, "as asked"), "bitsandbytes": _theirs}


@cache
def bitsandbytes_obstacle(device: str) -> str | None:
    """Return why bitsandbytes does not run on a kind of device, or None; it quantizes one block to find out."""
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (pip install bitsandbytes)"
    try:
        from bitsandbytes import functional

        block = torch.linspace(-1, 1, 64, device=device)
        functional.dequantize_4bit(*functional.quantize_4bit(block, blocksize=64, quant_type="nf4"))
    except Exception as error:  # noqa: BLE001  a library that finds no device raises whatever it likes
        return f"bitsandbytes does not run on {device}: {first_line(error)}"
    return None


# ---- transformers' interface


@register_quantization_config(METHOD)
class Settings(QuantizationConfigMixin):
    """What our quantizer is told."""

    def __init__(self, kind: str = "nf4", *, double: bool = True, **_: Any) -> None:
        self.quant_method: Any = METHOD
        self.kind, self.double = kind, double


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):
    """Turns each weight into a narrow layer when it is read."""

    quantization_config: Any

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.pre_quantized = False
        self.dtype: torch.dtype = torch.float32
        self.names: frozenset[str] = frozenset()

    @property
    def quantized_element_size(self) -> float:
        """Return bytes of a narrow weight."""
        return _BYTES[self.quantization_config.kind]

    def update_dtype(self, dtype: Any) -> Any:
        """Remember what the layers compute in."""
        self.dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self.names = frozenset(f"{path}.weight" for path in targets(model))
        # Codes are made from the numbers of the file, not from what is left of them in a narrower dtype.
        model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), *self.names}
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Tell whether a parameter becomes narrow."""
        return param_name in self.names

    def get_quantize_ops(self) -> Any:
        """Return what a weight goes through when it is read."""
        return _MakeNarrow(self)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # From here on it is an ordinary model: narrow layers save and move themselves.
        self.remove_quantization_config(model)
        for module in model.modules():
            if hasattr(module, "config") and hasattr(module.config, "_is_quantized"):
                del module.config._is_quantized
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Return whether transformers may save it."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Return whether adapters may learn on top of it."""
        return True


class _MakeNarrow(ConversionOps):
    """Puts a narrow layer into the place of the one that the weight was read for."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def convert(self, input_dict: Any, *args: Any, model: Any = None, missing_keys: Any = None, **kwargs: Any) -> Any:
        """Take the weights out of `input_dict`."""
        settings = self.quantizer.quantization_config
        left: dict[str, Any] = {}
        for name, value in input_dict.items():
            if name not in self.quantizer.names:
                left[name] = value
                continue
            path = name.rpartition(".")[0]
            weight = value[0] if isinstance(value, list) else value
            options = {"double": settings.double, "dtype": self.quantizer.dtype, "weight": weight}
            put(model, path, QuantizedLinear.of(model.get_submodule(path), settings.kind, **options))
            if missing_keys is not None:
                missing_keys.discard(name)
        return left


# ---- loading


def load(
    facts: Any, weights: Mapping[str, Any], options: dict[str, Any], choice: Choice | None, place: Placement
) -> Any:
    """Return the model of a config of transformers, read tensor by tensor: `weights` maps a name to what `[...]` reads.

    Raises ModelError for layers that the chosen backend cannot compute.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        remote = {"trust_remote_code": options.pop("trust_remote_code", False)}
        shell: Any = AutoModelForCausalLM.from_config(facts, **remote)
    if choice is not None and choice.backend != METHOD:
        _check_layers(shell, choice, place)
    more = {} if choice is None else {"quantization_config": choice.settings(place.dtype)}
    if place.device.type != "cpu" or (choice is not None and choice.backend != METHOD):
        more["device_map"] = {"": place.device}
    model = type(shell).from_pretrained(None, config=facts, state_dict=weights, dtype=place.dtype, **options, **more)
    if choice is not None:
        _say(model, choice)
    return model


def make_narrow(model: Any, choice: Choice | None, place: Placement) -> Any:
    """Quantize a model that is in memory, as `load` would have done it; it must be where it computes."""
    if choice is None:
        return model
    if choice.backend == METHOD:
        quantize(model, choice.kind, double=choice.double, dtype=place.dtype)
        return model
    _check_layers(model, choice, place)
    for path, layer in targets(model).items():
        put(model, path, bitsandbytes_layer(layer, choice, place))
    # peft looks here for which layers to expect.
    setattr(model, f"is_loaded_in_{8 if choice.kind == 'int8' else 4}bit", True)
    return model


def bitsandbytes_layer(layer: Any, choice: Choice, place: Placement) -> Any:
    """Return bitsandbytes' layer for a linear one."""
    from bitsandbytes import nn as theirs

    sizes = layer.in_features, layer.out_features, layer.bias is not None
    if choice.kind == "int8":
        made: Any = theirs.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        options: dict[str, Any] = {"requires_grad": False, "has_fp16_weights": False}
        made.weight = theirs.Int8Params(layer.weight.data, **options)
    else:
        options: dict[str, Any] = {"compress_statistics": choice.double, "quant_type": choice.kind}
        made = theirs.Linear4bit(*sizes, compute_dtype=place.dtype, **options)
        made.weight = theirs.Params4bit(layer.weight.data, requires_grad=False, **options)
    made.bias = layer.bias
    return made.to(place.device).train(layer.training)


def _check_layers(shell: Any, choice: Choice, place: Placement) -> None:
    """Raise ModelError for layers that bitsandbytes cannot compute, before any weight is read."""
    narrow = place.device.type == "cpu" and choice.kind != "int8"
    for path, layer in targets(shell).items():
        inputs = getattr(layer, "in_features", None)
        if inputs is None or (narrow and inputs % BLOCK):
            found = "keeps its weight transposed" if inputs is None else f"has {inputs} inputs, no multiple of {BLOCK}"
            raise ModelError(
                f"quantization_backend: bitsandbytes cannot compute {path} on {place.device.type}: it {found}; "
                "set quantization_backend: luthier",
                code="model_quantization",
            )


def _say(model: Any, choice: Choice) -> None:
    layers = list(quantized_layers(model))
    if not layers:
        raise ModelError("this model has no linear layers; set quantization: none", code="model_quantization")
    numbers, size = quantized_size(model)
    device = layers[0][1].weight.device if choice.backend != METHOD else layers[0][1].device
    name = choice.backend
    if name == METHOD:
        name = f"luthier ({FORMS[choice.kind].op.choose(device.type)[0]})"
    logger.info(
        "quantization: %s by %s, %s; %d linear layers take %.1f MB, in float32 %.1f",
        choice.form, name, choice.reason, len(layers), size / 1e6, numbers * 4 / 1e6,
    )  # fmt: skip
    dense = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 3)
    if dense:
        say_once(f"quantization: {dense / 1e6:.0f} M weights of experts are no linear layers and stay as they are")
