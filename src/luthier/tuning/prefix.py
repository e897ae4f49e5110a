"""Prefix-Tuning (arXiv:2101.00190) and its deep form P-Tuning v2 (arXiv:2110.07602), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.config.combinations import refuse
from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.prompt import Tokens, check_room
from luthier.tuning.targets import has_values

if TYPE_CHECKING:
    from torch import nn


@TUNINGS.register("prefix")
@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix(Tuning):
    """Learn keys and values in front of those of every layer (Prefix-Tuning, arXiv:2101.00190)."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    usual_rate: ClassVar[float] = 1e-4
    tokens: Tokens = 20
    """Virtual tokens."""
    reparameterization: bool = True
    """Learn a small network that makes the keys and values (section 4.3); only what it makes is kept at the end."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Size inside that network; none takes the size of all keys of a layer, or `tokens` if that is more."""
    init: Literal["activations", "random"] = "activations"
    """Start: keys and values of real tokens (section 7.4), or random numbers."""
    text: str = ""
    """Words whose keys and values are the start, repeated or cut to `tokens`; empty takes random tokens."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose prefix learns. Raises ConfigError for attention that takes no prefix."""
        from peft import PrefixTuningConfig, get_peft_model

        from luthier.tuning.parts.prefix import activations, begin_with, tokens_of

        check_room(model, self.tokens)
        refuse("prefix", plain_model(model).config)
        if self.text and self.init == "random":
            raise ConfigError("prefix: text is the start of init: activations; leave one of them out")
        plain = plain_model(model)
        start_PLKC = activations(plain, tokens_of(plain, self.tokens, self.text))
        heads, size = start_PLKC.shape[2:]
        config = PrefixTuningConfig(
            num_virtual_tokens=self.tokens,
            num_attention_heads=heads,
            token_dim=heads * size,
            prefix_projection=self.reparameterization,
            encoder_hidden_size=self.hidden or max(heads * size, self.tokens),
            task_type="CAUSAL_LM",
        )
        tuned: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        if self.init == "activations" and has_values(model):
            begin_with(tuned.prompt_encoder[tuned.active_adapter], start_PLKC.flatten(1))
        return tuned


@TUNINGS.register("ptuning_v2")
@dataclass(frozen=True, kw_only=True, slots=True)
class PTuningV2(Prefix):
    """Learn keys and values in front of those of every layer, without a network (P-Tuning v2, arXiv:2110.07602)."""

    usual_rate: ClassVar[float] = 1e-2
    tokens: Tokens = 32
    """Virtual tokens."""
    reparameterization: bool = False
    """Learn a small network that makes the keys and values; only what it makes is kept at the end."""
    # Help is read from the class that declares a field.
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Size inside that network; none takes the size of all keys of a layer, or `tokens` if that is more."""
    init: Literal["activations", "random"] = "activations"
    """Start: keys and values of real tokens, or random numbers."""
    text: str = ""
    """Words whose keys and values are the start, repeated or cut to `tokens`; empty takes random tokens."""
