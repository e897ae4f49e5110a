"""Orthogonal fine-tuning (arXiv:2306.07280), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.config.combinations import refuse
from luthier.config.schema import Names
from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.targets import check_names, choose_linears, module_names

if TYPE_CHECKING:
    from torch import nn

LATENT_INPUT = "kv_b_proj"
"""Layer of latent attention (arXiv:2405.04434) whose input has four dimensions."""


@TUNINGS.register("oft")
@dataclass(frozen=True, kw_only=True, slots=True)
class Oft(Tuning):
    """Turn the input of the linear layers by learned rotations of small blocks; lengths and angles stay."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 2e-4
    block_size: Annotated[int, Field(ge=0)] = 32
    """Inputs that are turned together; must divide the inputs of every layer. 0 where `blocks` is set."""
    blocks: Annotated[int, Field(ge=0)] = 0
    """Blocks of a layer instead of their size."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of blocks that are left unturned at random while training."""
    targets: Names = ("all",)
    """Linear layers by name; all takes every one in the decoder but the head."""
    cayley_series: bool = True
    """Make rotations by five terms of a series instead of an inverse: faster, and orthogonal but for rounding."""
    modules_to_save: Names = ()
    """Modules that learn whole and are saved with the adapter."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose rotations learn. Raises ConfigError when blocks do not fit a layer."""
        from peft import OFTConfig, get_peft_model

        if (self.block_size > 0) == (self.blocks > 0):
            raise ConfigError("oft: set block_size, or blocks (and block_size: 0), but not both")
        refuse("oft", plain_model(model).config)
        sizes = choose_linears(model, self.targets, "oft_target")
        if self.targets == ("all",) and sizes.pop(LATENT_INPUT, None):
            say_once(f"oft: {LATENT_INPUT} is left out, because peft turns inputs of three dimensions only")
        check_names(self.modules_to_save, module_names(model), "modules_to_save: module")
        self._check_blocks(model, set(sizes))
        config = OFTConfig(
            r=self.blocks,
            oft_block_size=self.block_size,
            module_dropout=self.dropout,
            target_modules=list(sizes),
            use_cayley_neumann=self.cayley_series,
            modules_to_save=list(self.modules_to_save) or None,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]

    def _check_blocks(self, model: nn.Module, names: set[str]) -> None:
        divisor = self.block_size or self.blocks
        for path, module in model.named_modules():
            inputs = getattr(module, "in_features", None)
            if path.rpartition(".")[2] in names and inputs is not None and inputs % divisor:
                fitting = max(n for n in range(1, divisor + 1) if inputs % n == 0)
                raise ConfigError(
                    f"oft: {divisor} does not divide the {inputs} inputs of {path}; the next that does is {fitting}"
                )
