"""LoRA (arXiv:2106.09685) and its relatives, through peft."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from luthier.config.schema import Names
from luthier.config.values import split_commas
from luthier.core.anatomy import decoder_layers
from luthier.core.errors import ConfigError
from luthier.core.log import say_once
from luthier.core.protocols import Tuning
from luthier.core.registry import TUNINGS
from luthier.tuning.targets import (
    check_names,
    check_rank,
    choose_linears,
    experts_of,
    has_tied_head,
    has_values,
    module_names,
)

if TYPE_CHECKING:
    from torch import nn

EMBEDDINGS = ("embed", "wte")
"""What the names of input embeddings have in common."""
_STARTS_INSIDE, _GROWING_SCALE = 0.2, 0.4
"""Of the usual learning rate; measured by benchmarks/methods.py."""


@TUNINGS.register("lora")
@dataclass(frozen=True, kw_only=True, slots=True)
class Lora(Tuning):
    """Train a low-rank addition to the linear layers: y = W x + scale * B (A x), with B = 0 at the start."""

    base_learns: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 5e-4
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
    init: Literal["zero", "gaussian", "pissa", "olora", "loftq"] = "zero"
    """Start: zero (B = 0), gaussian (the same, A drawn from a normal distribution), pissa (principal directions of the
    weight, arXiv:2404.02948), olora (its QR factors, arXiv:2406.01775), loftq (what quantization lost,
    arXiv:2310.08659)."""
    pissa_iterations: Annotated[int, Field(ge=0)] = 16
    """Power iterations of the fast singular value decomposition of pissa; 0 takes the exact one."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict[str, int])
    """Name of a linear layer, or the end of its path -> its own rank."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict[str, float])
    """Name of a linear layer, or the end of its path -> its own alpha."""
    layers_to_transform: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(split_commas)] = ()
    """Numbers of the decoder layers that get an addition, the first being 0; none takes all."""
    llama_pro: bool = False
    """Only blocks that were added to the model in even distances get an addition (LLaMA Pro, arXiv:2401.02415)."""
    layers: Annotated[int, Field(ge=0)] = 0
    """With llama_pro, how many were added; 0 takes what the model says of itself."""
    experts: bool = False
    """Train the weights of a mixture's experts with low rank too; its router stays frozen."""
    modules_to_save: Names = ()
    """Modules that learn whole and are saved with the adapter, such as embed_tokens or lm_head."""
    b_rate_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of B over that of A: LoRA+ (arXiv:2402.12354) takes about 16."""
    embedding_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of embeddings in modules_to_save; none takes learning_rate."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a peft model whose adapter learns. Raises ConfigError when a target is not in the model."""
        from peft import LoraConfig, get_peft_model

        from luthier.tuning.parts.starts import START_OF

        sizes = choose_linears(model, self.targets, "lora_target")
        check_rank(self.rank, sizes, "lora_rank")
        check_names(self.modules_to_save, module_names(model), "modules_to_save: module")
        self._check_patterns(model, sizes)
        self._check_layers(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha or 2 * self.rank,  # pyright: ignore[reportArgumentType]  # peft takes floats too
            lora_dropout=self.dropout,
            target_modules=list(sizes),
            target_parameters=self._experts(model),
            layers_to_transform=self._layers(model) or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            modules_to_save=list(self.modules_to_save) or None,
            # A copy of the embedding that learns must stay the head that it was.
            ensure_weight_tying=bool(self.modules_to_save) and has_tied_head(model),
            task_type="CAUSAL_LM",
        )
        start = START_OF.get(self.init)
        if start is not None:
            start.check(model, self)
        tuned = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
        if start is not None and has_values(model):
            start.begin(tuned, self.pissa_iterations)
        return tuned

    def rate_factor(self) -> float:
        """Return a lower rate for starts inside the weights, and for a scale that grows with the rank."""
        return _STARTS_INSIDE if self.init in ("pissa", "olora") else _GROWING_SCALE if self.rslora else 1.0

    def learning_rate(self, parameter: str, usual: float) -> float:
        """Return the peak learning rate of a parameter by its name."""
        if "lora_B" in parameter or "lora_embedding_B" in parameter:
            return usual * self.b_rate_ratio
        if "modules_to_save" in parameter and any(part in parameter for part in EMBEDDINGS):
            return self.embedding_rate or usual
        return usual

    def _check_patterns(self, model: nn.Module, sizes: dict[str, int]) -> None:
        ends = {name for path, _ in model.named_modules() for name in _ends(path) if path.rpartition(".")[2] in sizes}
        check_names(self.rank_pattern, ends, "rank_pattern: target")
        check_names(self.alpha_pattern, ends, "alpha_pattern: target")
        for name, rank in self.rank_pattern.items():
            check_rank(rank, {name: sizes[name.rpartition(".")[2]]}, "rank_pattern")

    def _layers(self, model: nn.Module) -> list[int]:
        """Return the numbers of the layers that get an addition; empty for all."""
        if not self.llama_pro:
            if self.layers:
                say_once("freeze_trainable_layers is left out: with finetuning_type: lora it goes with use_llama_pro")
            return list(self.layers_to_transform)
        from luthier.tuning.parts.blocks import added, evenly

        return list(evenly(model, self.layers or len(added(model))))

    def _check_layers(self, model: nn.Module) -> None:
        count = len(decoder_layers(model))
        if max(self.layers_to_transform, default=0) >= count:
            raise ConfigError(f"layers_to_transform: this model has layers 0 to {count - 1}, and no layer "
                              f"{max(self.layers_to_transform)}")  # fmt: skip
        if (self.layers_to_transform or self.llama_pro) and self.experts:
            raise ConfigError("layers_to_transform and use_llama_pro choose linear layers only; leave out experts")
        if self.layers_to_transform and self.llama_pro:
            raise ConfigError("layers_to_transform and use_llama_pro both choose layers; leave one of them out")

    def _experts(self, model: nn.Module) -> list[str] | None:
        if not self.experts:
            return None
        parameters = list(experts_of(model))
        if not parameters:
            raise ConfigError("experts: true, but this model is no mixture of experts; leave it out")
        if self.dropout or self.dora:
            raise ConfigError("experts: true works without lora_dropout and use_dora only; leave them out")
        return parameters


def _ends(path: str) -> list[str]:
    """Return the ends of a path, the shortest first: c, b.c, a.b.c."""
    parts = path.split(".")
    return [".".join(parts[i:]) for i in reversed(range(len(parts)))]
