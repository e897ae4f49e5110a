"""Trainers under the names that scripts for Unsloth use: TRL's own, with a learning rate for embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import DependencyError
from luthier.core.log import say_once
from luthier.facade.old_names import activate

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise DependencyError("trainers of TRL need trl; run: pip install 'trl>=1.16,<1.17'", code="missing_trl") from error

_WHOLE = ".modules_to_save."
"""In names of parameters that an adapter trains whole, as embeddings and output heads are."""


@dataclass
class UnslothTrainingArguments(SFTConfig):
    """Settings of TRL's SFTTrainer, and the learning rate of embeddings and output head."""

    embedding_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate of what modules_to_save trains whole; none takes learning_rate."},
    )
    q_galore_config: Any = field(default=None, metadata={"help": "Not available; use LoRA of a higher rank."})

    def __post_init__(self) -> None:
        if self.q_galore_config is not None:
            raise TypeError("q_galore_config: Q-GaLore is not available; use LoRA of a higher rank")
        super().__post_init__()


class UnslothTrainer(SFTTrainer):
    """TRL's SFTTrainer; `embedding_learning_rate` of its settings makes parameter groups of their own."""

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the optimizer; what modules_to_save trains whole has the learning rate of embeddings."""
        is_new = self.optimizer is None
        optimizer: Any = super().create_optimizer(model)
        rate = getattr(self.args, "embedding_learning_rate", None)
        if rate is None or not is_new:
            return optimizer
        trained: Any = self.model if model is None else model
        whole = {id(p): name for name, p in trained.named_parameters() if _WHOLE in name and p.requires_grad}
        if not whole:
            say_once("embedding_learning_rate does nothing: neither embed_tokens nor lm_head is trained")
        for group in list(optimizer.param_groups):
            here = [parameter for parameter in group["params"] if id(parameter) in whole]
            if here:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in whole]
                rest = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**rest, "params": here, "lr": rate})
        for name in whole.values():
            say_once(f"{name.split(_WHOLE)[0].split('.')[-1]}: learning rate {rate:g}, not {self.args.learning_rate:g}")
        return optimizer


def unsloth_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Train, as `trainer.train` does: gradients that are accumulated were right there all along."""
    return trainer.train(*args, **kwargs)


def PatchDPOTrainer() -> None:
    """Translate the old names of DPOTrainer, before or after it is imported; nothing is patched."""
    activate()


def PatchKTOTrainer() -> None:
    """Translate the old names of KTOTrainer, before or after it is imported; nothing is patched."""
    activate()


def PatchFastRL(algorithm: str | None = None, FastLanguageModel: Any = None) -> None:
    """Translate the old names of trainers that learn from answers; nothing is patched."""
    activate()
