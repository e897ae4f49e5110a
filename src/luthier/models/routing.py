"""How a mixture of experts spreads tokens: the load-balancing loss and the load of the busiest expert.

Shapes: T tokens, E experts, A experts of a token.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.anatomy import family_of, plain_model, routers_of
from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Routes:
    """What the routers of one forward pass said, layer by layer."""

    logits_TE: list[Tensor] = field(default_factory=list[Tensor])
    chosen_TA: list[Tensor] = field(default_factory=list[Tensor])

    def balance(self) -> Tensor:
        """Return the load-balancing loss of Switch Transformer (arXiv:2101.03961, equations 4 to 6), a scalar.

        It is A when experts are used evenly. Rows are packed without padding, so every token counts once, a shared
        prefix too. It is a product of two means over the tokens of one pass, so it is not additive: it depends on how a
        window is split into batches.
        """
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        logits: Any = tuple(self.logits_TE)
        loss: Any = load_balancing_loss_func(logits, self.logits_TE[0].shape[-1], self.chosen_TA[0].shape[-1])
        return loss

    def busiest(self) -> Tensor:
        """Return the load of the busiest expert over that of an average one, mean over layers: 1.0 is even."""
        loads = [
            torch.bincount(chosen.flatten(), minlength=logits.shape[-1]).max() * logits.shape[-1] / chosen.numel()
            for logits, chosen in zip(self.logits_TE, self.chosen_TA, strict=True)
        ]
        return torch.stack(loads).mean()


@contextmanager
def watched(model: nn.Module) -> Iterator[Routes]:
    """Collect what the routers of `model` say inside the block."""
    routes = Routes()

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        logits, _, chosen = outputs
        routes.logits_TE.append(logits)
        routes.chosen_TA.append(chosen)

    hooks = [router.register_forward_hook(keep) for router in routers_of(model)]
    try:
        yield routes
    finally:
        for hook in hooks:
            hook.remove()


def check_balance(model: nn.Module) -> None:
    """Raise ConfigError when a load-balancing loss is asked for and `model` knows none."""
    model_type = str(plain_model(model).config.model_type)
    family = family_of(model_type)
    if family.balance_loss:
        return
    why = f"it is balanced otherwise: {family.quirks}" if family.router else "it has no experts"
    raise ConfigError(f"moe_aux_loss_coef is set, but {model_type} has no load-balancing loss; {why}; set it to 0")
