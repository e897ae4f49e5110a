"""Prefix-Tuning (arXiv:2101.00190) and its deep form P-Tuning v2 (arXiv:2110.07602), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.prompt import Tokens, check_room

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("prefix")
@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix(Tuning):
    """Learn keys and values in front of those of every layer (Prefix-Tuning, arXiv:2101.00190)."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    tokens: Tokens = 20
    """Virtual tokens."""
    reparameterization: bool = True
    """Learn a small network that makes the keys and values (section 4.3); only what it makes is kept at the end."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Size inside that network; none takes the size of all keys of a layer."""
    init: Literal["activations", "random"] = "activations"
    """Start: keys and values of real tokens (section 7.4), or random numbers."""
    text: str = ""
    """Words whose keys and values are the start, repeated or cut to `tokens`; empty takes random tokens."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose prefix learns. Raises ConfigError for attention that takes no prefix."""
        from peft import PrefixTuningConfig, get_peft_model

        from luthier.tuning.parts.prefix import activations, begin_with

        check_room(model, self.tokens)
        if hasattr(plain_model(model).config, "kv_lora_rank"):
            raise ConfigError(
                "latent attention has keys and values of different size, which a prefix cannot be; use tuning: prompt"
            )
        if self.text and self.init == "random":
            raise ConfigError("prefix: text is the start of init: activations; leave one of them out")
        start = activations(plain_model(model), self.tokens, self.text) if self.init == "activations" else None
        config = PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            prefix_projection=self.reparameterization,
            encoder_hidden_size=self.hidden,  # pyright: ignore[reportArgumentType]  # peft fills in its own
            task_type="CAUSAL_LM",
        )
        tuned: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        if start is not None:
            begin_with(tuned.prompt_encoder[tuned.active_adapter], start)
        return tuned


@TUNINGS.register("ptuning_v2")
@dataclass(frozen=True, kw_only=True, slots=True)
class PTuningV2(Prefix):
    """Learn keys and values in front of those of every layer, without a network (P-Tuning v2, arXiv:2110.07602)."""

    tokens: Tokens = 32
    """Virtual tokens."""
    reparameterization: bool = False
    """Learn a small network that makes the keys and values; only what it makes is kept at the end."""
