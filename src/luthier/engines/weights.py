"""The weights of a model as others name them, adapters merged in, one layer at a time: for engines with a copy."""

from __future__ import annotations

import copy
import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

from luthier.core.anatomy import at_work, plain_model
from luthier.models.quantized import QuantizedLinear, is_of_bitsandbytes
from luthier.models.virtual import virtual_tokens
from luthier.tuning.parts.bottleneck import all_of as bottlenecks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

_LAYER = re.compile(r".*?\.\d+\.")


def obstacle(model: nn.Module) -> str | None:
    """Return why what `model` computes is not in its weights, or None."""
    if virtual_tokens(model) is not None:
        return "a soft prompt or a prefix is not weights"
    if bottlenecks(model):
        return "bottleneck adapters stand behind its blocks"
    if any(is_of_bitsandbytes(module) for module in model.modules()):
        return "layers of bitsandbytes hold codes; set quantization_backend: luthier"
    return None


def published_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under the name that it has in published files; for models without an `obstacle`.

    What adapters make of one layer exists while that layer is read, so there is no second copy of the model.
    """
    from transformers.core_model_loading import revert_weight_conversion

    plain = plain_model(model)
    for _, layer in groupby(_walk(plain, ""), key=_layer_of):
        # transformers keeps, for one, all experts of a layer in one tensor; files hold them apart.
        yield from revert_weight_conversion(plain, dict(layer)).items()


def _layer_of(named: tuple[str, Tensor]) -> str:
    found = _LAYER.match(named[0])
    return found[0] if found else named[0]


def _walk(module: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    module = _plain(module)
    passing = module._non_persistent_buffers_set
    kept = {name: buffer for name, buffer in module.named_buffers(recurse=False) if name not in passing}
    for name, tensor in {**dict(module.named_parameters(recurse=False)), **kept}.items():
        yield path + name, tensor.detach()
    for name, child in module.named_children():
        yield from _walk(child, f"{path}{name}.")


def _plain(module: Any) -> Any:
    """Return a module that computes what `module` does, without adapters; `module` itself stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    module = at_work(module)
    if isinstance(module, BaseTunerLayer):
        if not module.disable_adapters:
            module = copy.deepcopy(module)
            # Adapters on several parameters of one module stand in a row.
            for layer in [each for each in module.modules() if isinstance(each, BaseTunerLayer)]:
                if not layer.merged:
                    layer.merge()  # pyright: ignore[reportCallIssue]  each kind of layer has it
        module = module.get_base_layer()
    return module.dense(module.dtype) if isinstance(module, QuantizedLinear) else module
