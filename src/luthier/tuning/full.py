"""Full fine-tuning: every parameter learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("full")
@dataclass(frozen=True, kw_only=True, slots=True)
class Full(Tuning):
    """Train all weights: the most memory, the most change."""

    base_learns: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 5e-5

    def apply(self, model: nn.Module) -> nn.Module:
        """Let every parameter learn."""
        return model.requires_grad_(True)
