"""Bottleneck adapters, small networks behind the blocks of a layer: arXiv:1902.00751 and arXiv:2005.00052."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("bottleneck")
@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck(Tuning):
    """Train a small network behind attention and feed-forward: x + scale * up(activation(down(x))), up = 0 at start."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    usual_rate: ClassVar[float] = 4e-4
    size: Annotated[int, Field(ge=1)] = 64
    """Units of the small network."""
    variant: Literal["houlsby", "pfeiffer"] = "houlsby"
    """houlsby: behind attention and feed-forward; pfeiffer: behind feed-forward only."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """Activation of the small network."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of what is added."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Put a learning adapter behind the blocks of every layer and freeze the rest.

        Raises ConfigError when the bottleneck is no narrower than the model.
        """
        hidden = plain_model(model).config.hidden_size
        if self.size >= hidden:
            raise ConfigError(f"bottleneck: size {self.size} is not below the hidden size of the model ({hidden})")
        from luthier.tuning.parts.bottleneck import attach

        model.requires_grad_(False)
        attach(model, "default", self.variant, self.size, self.activation, self.scale)
        return model
