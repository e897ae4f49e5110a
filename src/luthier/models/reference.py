"""The model that objectives compare with: log-probabilities of the same batch, without gradient and dropout.

Shapes: N predictions.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from luthier.models.adapters import add_adapter, exchanged, keep_start, switched_off
from luthier.models.distribution import Head, frozen_head

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from luthier.core.batch import PackedBatch
    from luthier.models.policy import Policy

_Answer = TypeVar("_Answer")
NAME = "reference"
"""What the second copy of an adapter is called inside the model."""


class Reference:
    """A frozen model: one of its own, or the policy's with its adapter off or exchanged while it scores."""

    def __init__(
        self,
        load: Callable[[], Policy],
        *,
        files: tuple[Path, ...],
        borrow: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._load, self._borrow, self._policy = load, borrow, None
        self.files = files
        """Folders that hold what it is made of."""

    def logp(self, batch: PackedBatch) -> Tensor:
        """Return log-probabilities of the wanted targets, [N], in nats."""
        return self._ask(lambda policy: policy(batch).logp)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the hidden states that make the wanted predictions, [N, D]."""
        return self._ask(lambda policy: policy.hidden(batch))

    def head(self) -> Head:
        """Return what makes logits of these. Raises ModelError when an adapter sits on it."""
        return self._ask(lambda policy: frozen_head(policy.model))

    @torch.no_grad()
    def _ask(self, what: Callable[[Policy], _Answer]) -> _Answer:
        self._policy = policy = self._policy or self._load()
        was_training = policy.training
        policy.eval()
        try:
            with self._borrow():
                return what(policy)
        finally:
            policy.train(was_training)

    def release(self) -> None:
        """Give its memory back; it is loaded again if it is asked again."""
        self._policy = None


def without_adapter(policy: Policy, files: tuple[Path, ...]) -> Reference:
    """Return the model of `policy` before its new adapter: it is off, or as it began, while the reference scores."""
    model: Any = policy.model
    borrow = partial(exchanged, model, NAME) if keep_start(model, NAME) else partial(switched_off, model)
    return Reference(lambda: policy, files=files, borrow=borrow)


def with_first_adapter(policy: Policy, files: tuple[Path, ...], adapter: Path) -> Reference:
    """Return `policy` as it was when it began to continue `adapter`: a second copy of it that does not learn."""
    add_adapter(policy.model, adapter, NAME)
    return Reference(lambda: policy, files=(*files, adapter), borrow=partial(exchanged, policy.model, NAME))
