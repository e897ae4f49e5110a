"""IA3 (arXiv:2205.05638), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.config.schema import Names
from luthier.core.anatomy import linear_names
from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.targets import choose_linears, experts_of

if TYPE_CHECKING:
    from torch import nn

KEYS_AND_VALUES = (
    "k_proj", "v_proj", "kv_b_proj", "qkv_proj", "query_key_value", "W_pack", "wqkv", "c_attn",
)  # fmt: skip
"""Layers that make keys and values, alone or together with queries."""
SECOND_OF_MLP = ("down_proj", "dense_4h_to_h", "fc2", "w2", "mlp.c_proj")
"""Layers whose input is what the feed-forward block computes inside; attention has a c_proj too."""


@TUNINGS.register("ia3")
@dataclass(frozen=True, kw_only=True, slots=True)
class Ia3(Tuning):
    """Learn one factor for each key, value and inner activation: the fewest parameters."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 7.5e-3
    targets: Names = ("all",)
    """Linear layers whose output is scaled; all takes those that make keys and values."""
    feedforward: Names = ("all",)
    """Linear layers whose input is scaled instead; all takes the second layer of the feed-forward blocks."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose factors learn. Raises ConfigError when a target is not in the model."""
        from peft import IA3Config, get_peft_model

        scaled = self._named(model, self.targets, KEYS_AND_VALUES, "targets")
        inner = self._named(model, self.feedforward, SECOND_OF_MLP, "feedforward", required=not experts_of(model))
        config = IA3Config(target_modules=[*scaled, *inner], feedforward_modules=inner, task_type="CAUSAL_LM")
        return get_peft_model(model, config)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def _named(
        model: nn.Module, asked: tuple[str, ...], usual: tuple[str, ...], setting: str, *, required: bool = True
    ) -> list[str]:
        if asked != ("all",):
            return list(choose_linears(model, asked, f"ia3 {setting}"))
        there = linear_names(model)
        found = [name for name in usual if name.rpartition(".")[2] in there]
        if not found and not required:
            say_once("ia3: the weights of experts are no linear layers, so only keys and values are scaled")
        elif not found:
            raise ConfigError(f"ia3: name the {setting} of this model yourself; it has {', '.join(sorted(there))}")
        return found
