"""VeRA (arXiv:2310.11454), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.config.schema import Names
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.targets import check_names, choose_linears, module_names

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("vera")
@dataclass(frozen=True, kw_only=True, slots=True)
class Vera(Tuning):
    """Share one pair of random low-rank matrices among all layers and learn two vectors for each layer."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 7.5e-3
    rank: Annotated[int, Field(ge=1)] = 256
    """Rank of the shared matrices; may be above the size of a layer, because they are not trained."""
    initial: Annotated[float, Field(gt=0)] = 0.1
    """Start of the vector between the two matrices; the other one begins at 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input."""
    targets: Names = ("all",)
    """Linear layers by name; all takes every one in the decoder but the head."""
    modules_to_save: Names = ()
    """Modules that learn whole and are saved with the adapter."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose vectors learn. Raises ConfigError when a target is not in the model."""
        from peft import VeraConfig, get_peft_model

        sizes = choose_linears(model, self.targets, "vera targets")
        check_names(self.modules_to_save, module_names(model), "modules_to_save: module")
        config = VeraConfig(
            r=self.rank,
            d_initial=self.initial,
            vera_dropout=self.dropout,
            target_modules=list(sizes),
            save_projection=True,  # drawing them again elsewhere may draw others
            modules_to_save=list(self.modules_to_save) or None,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
