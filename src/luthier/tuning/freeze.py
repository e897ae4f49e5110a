"""Freeze-tuning: some decoder layers learn, the rest stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.config.schema import Names
from luthier.core.anatomy import decoder_layers
from luthier.core.errors import ConfigError
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.targets import check_names

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("freeze")
@dataclass(frozen=True, kw_only=True, slots=True)
class Freeze(Tuning):
    """Train the last (or first) decoder layers only."""

    base_learns: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 5e-5
    layers: int = 2
    """Decoder layers that learn: the last n, or the first n when negative; 0 with extra_modules trains these alone."""
    modules: Names = ("all",)
    """Parts of those layers that learn, such as mlp or self_attn; all takes the whole layer."""
    extra_modules: Names = ()
    """Modules outside the layers that learn too, such as embed_tokens or norm."""
    llama_pro: bool = False
    """Those layers are blocks that were added to the model in even distances (LLaMA Pro, arXiv:2401.02415)."""
    expand: Annotated[int, Field(ge=0)] = 0
    """Add so many blocks first, which leave the answers as they are, and train these alone."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Freeze everything but the chosen layers. Raises ConfigError when a name matches nothing."""
        chosen = self._chosen(model)
        model.requires_grad_(False)
        layers = list(decoder_layers(model))
        inside = {part for name, _ in layers[0].named_parameters() for part in name.split(".")[:-1]}
        check_names(self.modules, {"all", *inside}, "freeze: module")
        for layer in chosen:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_("all" in self.modules or not set(self.modules).isdisjoint(name.split(".")))
        in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
        outside = {n: p for n, p in model.named_parameters() if id(p) not in in_layers}
        check_names(self.extra_modules, {part for n in outside for part in n.split(".")[:-1]}, "freeze: module")
        for name, parameter in outside.items():
            parameter.requires_grad_(not set(self.extra_modules).isdisjoint(name.split(".")))
        return model

    def _chosen(self, model: nn.Module) -> list[nn.Module]:
        if self.llama_pro or self.expand:
            from luthier.tuning.parts.blocks import evenly, expand  # needs torch, which reading settings does not

            if self.expand:
                expand(model, self.expand)
            numbers = evenly(model, self.expand or self.layers)
            return [decoder_layers(model)[number] for number in numbers]
        layers = list(decoder_layers(model))
        if abs(self.layers) > len(layers) or not (self.layers or self.extra_modules):
            raise ConfigError(f"tuning.layers is {self.layers}; this model has {len(layers)} decoder layers")
        return layers[-self.layers :] if self.layers > 0 else layers[: -self.layers]
