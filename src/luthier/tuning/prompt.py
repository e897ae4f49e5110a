"""Soft prompts: learned vectors in front of the embeddings (arXiv:2104.08691, arXiv:2103.10385), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.targets import has_values

if TYPE_CHECKING:
    from torch import nn

Tokens = Annotated[int, Field(ge=1)]


def check_room(model: nn.Module, tokens: int) -> None:
    """Raise ConfigError when virtual tokens fill the whole context of the model."""
    context = getattr(plain_model(model).config, "max_position_embeddings", None)
    if context and tokens >= context:
        raise ConfigError(f"tuning.tokens is {tokens}, but this model's context has {context} tokens; lower it")


@TUNINGS.register("prompt")
@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt(Tuning):
    """Learn vectors in front of every sequence (soft prompt, arXiv:2104.08691)."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    usual_rate: ClassVar[float] = 1.1e-2
    tokens: Tokens = 64
    """Virtual tokens."""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """Start: embeddings of random tokens, of `text`, or random numbers."""
    text: str = ""
    """Words whose embeddings the vectors begin as, repeated or cut to `tokens`; for init: text."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose vectors learn. Raises ConfigError when init: text has no text."""
        from peft import PromptTuningConfig, PromptTuningInit, get_peft_model

        check_room(model, self.tokens)
        if (self.init == "text") != bool(self.text.strip()):
            raise ConfigError("prompt: init: text and a text belong together; set both or neither")
        kinds = {"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}
        config = PromptTuningConfig(
            num_virtual_tokens=self.tokens,
            prompt_tuning_init=PromptTuningInit(kinds[self.init]),
            prompt_tuning_init_text=self.text or None,
            tokenizer_name_or_path=plain_model(model).name_or_path if self.text else None,
            task_type="CAUSAL_LM",
        )
        tuned = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        # Where the vectors came from is over; peft would ask for the tokenizer again when it loads them.
        config.prompt_tuning_init, config.prompt_tuning_init_text = PromptTuningInit.RANDOM, None
        config.tokenizer_name_or_path = None
        return tuned


@TUNINGS.register("ptuning")
@dataclass(frozen=True, kw_only=True, slots=True)
class PTuning(Tuning):
    """Learn a small network that makes the vectors in front of every sequence (P-Tuning, arXiv:2103.10385)."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    usual_rate: ClassVar[float] = 2e-4
    tokens: Tokens = 64
    """Virtual tokens."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three linear layers, or an LSTM in both directions and two linear layers."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Size inside the network; none takes that of the model, or `tokens` if that is more."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """Start: a network that makes embeddings of random tokens, or random numbers."""
    lstm_layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the LSTM."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout between layers of the LSTM."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose network learns."""
        from peft import PromptEncoderConfig, PromptEncoderReparameterizationType, get_peft_model

        from luthier.tuning.parts.prefix import begin_vectors_with, tokens_of

        check_room(model, self.tokens)
        plain = plain_model(model)
        config = PromptEncoderConfig(
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=PromptEncoderReparameterizationType(self.encoder.upper()),
            encoder_hidden_size=self.hidden or max(plain.config.hidden_size, self.tokens),
            encoder_num_layers=self.lstm_layers,
            encoder_dropout=self.dropout,
            task_type="CAUSAL_LM",
        )
        tuned: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        if self.init == "vocabulary" and has_values(model):
            start_PD = plain.get_input_embeddings()(tokens_of(plain, self.tokens, "").to(plain.device))
            begin_vectors_with(tuned.prompt_encoder[tuned.active_adapter], start_PD)
        return tuned
