"""The small networks of bottleneck adapters, and where they stand.

Shapes: D hidden, B bottleneck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from luthier.core.anatomy import decoder_layers, family_of, plain_model
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = {"houlsby": ("attention", "mlp"), "pfeiffer": ("mlp",)}
"""Variant -> blocks of a layer that an adapter stands behind, as a family's facts call them."""
ATTRIBUTE = "bottlenecks"
"""Where a block keeps its adapters by name."""


class SmallNetwork(nn.Module):
    """x -> x + scale * up(activation(down(x))); the identity at the start."""

    def __init__(self, hidden: int, size: int, activation: str, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden, size), nn.Linear(size, hidden)
        self.activation, self.activation_name, self.scale = ACT2FN[activation], activation, scale
        nn.init.normal_(self.down.weight, std=0.01)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many numbers as came in, [..., D], in the dtype of `x`."""
        inner = self.activation(self.down(x.to(self.down.weight.dtype)))
        return x + (self.scale * self.up(inner)).to(x.dtype)


class Bottlenecks(nn.Module):
    """The adapters behind one block, of which at most one is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.active: str | None = None

    def hook(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        """Change what the block returned: hidden states, alone or as the first of several."""
        if self.active is None:
            return None
        network = self.adapters[self.active]
        return (network(output[0]), *output[1:]) if isinstance(output, tuple) else network(output)


def blocks_of(model: nn.Module, variant: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield a name such as "3.mlp" and the block for every place of a variant."""
    family = family_of(plain_model(model).config.model_type)
    for index, layer in enumerate(decoder_layers(model)):
        for place in PLACES[variant]:
            name = getattr(family, place)
            block = getattr(layer, name, None)
            if block is None:
                raise ConfigError(
                    f"bottleneck: a layer of this model has no {name!r}; it has "
                    f"{', '.join(child for child, _ in layer.named_children())}"
                )
            yield f"{index}.{place}", block


def attach(model: nn.Module, name: str, variant: str, size: int, activation: str, scale: float) -> None:
    """Put networks that do nothing yet behind the blocks of every layer, and let them work."""
    plain = plain_model(model)
    for _, block in blocks_of(model, variant):
        _add(block, name, SmallNetwork(plain.config.hidden_size, size, activation, scale).to(plain.device))


def _add(block: nn.Module, name: str, network: SmallNetwork) -> None:
    """Put `network` behind `block` under `name` and let it work."""
    here = getattr(block, ATTRIBUTE, None)
    if here is None:
        here = Bottlenecks()
        setattr(block, ATTRIBUTE, here)
        block.register_forward_hook(here.hook)
    here.adapters[name] = network
    here.active = name


def all_of(model: nn.Module) -> list[Bottlenecks]:
    """Return the adapters behind every block of `model`; empty when there are none."""
    return [module for module in model.modules() if isinstance(module, Bottlenecks)]


def use(model: nn.Module, name: str | None) -> None:
    """Let the adapters called `name` work, or none."""
    for each in all_of(model):
        each.active = name if name is not None and name in each.adapters else None


def active(model: nn.Module) -> str | None:
    """Return the name of the adapters at work."""
    return next((each.active for each in all_of(model)), None)


def networks(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """Return layers.<n>.<attention|mlp> -> the network of adapter `name` behind that block."""
    found: dict[str, nn.Module] = {}
    for where, block in blocks_of(model, "houlsby"):
        here = getattr(block, ATTRIBUTE, None)
        if here is not None and name in here.adapters:
            found[f"layers.{where}"] = here.adapters[name]
    return found
