"""The model that objectives compare with: log-probabilities of the same batch, without gradient and dropout.

Shapes: N predictions.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor

    from luthier.core.batch import PackedBatch
    from luthier.models.policy import Policy

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

    @torch.no_grad()
    def logp(self, batch: PackedBatch) -> Tensor:
        """Return log-probabilities of the wanted targets, [N], in nats."""
        self._policy = policy = self._policy or self._load()
        was_training = policy.training
        policy.eval()
        try:
            with self._borrow():
                return policy(batch).logp
        finally:
            policy.train(was_training)

    def release(self) -> None:
        """Give its memory back; it is loaded again if it is asked again."""
        self._policy = None


def without_adapter(policy: Policy, base: Path) -> Reference:
    """Return the base model of `policy`, whose adapter is new: it is off while the reference scores."""
    model: Any = policy.model
    return Reference(lambda: policy, files=(base,), borrow=model.disable_adapter)


def with_first_adapter(policy: Policy, base: Path, adapter: Path) -> Reference:
    """Return `policy` as it was when it began to continue `adapter`: a second copy of it that does not learn."""
    model: Any = policy.model
    learning = model.active_adapter
    model.load_adapter(str(adapter), adapter_name=NAME, is_trainable=False)

    @contextmanager
    def exchanged() -> Iterator[None]:
        model.set_adapter(NAME)
        try:
            yield
        finally:
            model.set_adapter(learning)

    return Reference(lambda: policy, files=(base, adapter), borrow=exchanged)
