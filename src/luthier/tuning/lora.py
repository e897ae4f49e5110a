"""LoRA (arXiv:2106.09685) and its relatives, through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.config.schema import Names
from luthier.core.errors import ConfigError
from luthier.core.registry import TUNINGS

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("lora")
@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Train a low-rank addition to the linear layers: y = W x + scale * B (A x), with B = 0 at the start."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the addition."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The addition is scaled by alpha / rank; none means 2 x rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of A."""
    targets: Names = ("all",)
    """Linear layers by name; all takes every one in the decoder but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv:2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction apart (arXiv:2402.09353)."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose adapter learns. Raises ConfigError when a target is not in the model."""
        from peft import LoraConfig, get_peft_model

        from luthier.core.anatomy import linear_names

        there = linear_names(model)
        targets = sorted(there) if self.targets == ("all",) else list(self.targets)
        missing = [name for name in targets if name not in there]
        if missing:
            raise ConfigError(
                f"lora_target {missing[0]!r} is no linear layer of this model; it has {', '.join(sorted(there))}"
            )
        too_thin = [name for name in targets if self.rank > there[name]]
        if too_thin:
            raise ConfigError(
                f"lora_rank {self.rank} is above the size of {too_thin[0]} ({there[too_thin[0]]}); lower it"
            )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,  # pyright: ignore[reportArgumentType]  # peft takes floats too
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.rslora,
            use_dora=self.dora,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
