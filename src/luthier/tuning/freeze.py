"""Freeze-tuning: some decoder layers learn, the rest stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.config.schema import Names
from luthier.core.errors import ConfigError
from luthier.core.registry import TUNINGS

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("freeze")
@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze:
    """Train the last (or first) decoder layers only."""

    base_learns: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    layers: int = 2
    """Decoder layers that learn: the last n, or the first n when negative."""
    modules: Names = ("all",)
    """Parts of those layers that learn, such as mlp or self_attn; all takes the whole layer."""
    extra_modules: Names = ()
    """Modules outside the layers that learn too, such as embed_tokens or norm."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze everything but the chosen layers. Raises ConfigError when a name matches nothing."""
        from luthier.core.anatomy import decoder_layers

        model.requires_grad_(False)
        layers = list(decoder_layers(model))
        if not 0 < abs(self.layers) <= len(layers):
            raise ConfigError(f"tuning.layers is {self.layers}; this model has {len(layers)} decoder layers")
        chosen = layers[-self.layers :] if self.layers > 0 else layers[: -self.layers]
        for name in self.modules:
            parts = [
                p for layer in chosen for n, p in layer.named_parameters() if name == "all" or name in n.split(".")
            ]
            self._learn(name, parts, sorted({n.split(".")[0] for n, _ in layers[0].named_parameters()}))
        for name in self.extra_modules:
            parts = [p for n, p in model.named_parameters() if name in n.split(".") and ".layers." not in n]
            self._learn(name, parts, sorted({part for n, _ in model.named_parameters() for part in n.split(".")[:-1]}))
        return model

    @staticmethod
    def _learn(name: str, parameters: list[nn.Parameter], there: list[str]) -> None:
        if not parameters:
            raise ConfigError(f"freeze tuning: no module is called {name!r}; there are: {', '.join(there[:20])}")
        for parameter in parameters:
            parameter.requires_grad_(True)
