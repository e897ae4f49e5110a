"""What a run is made of once its model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.models.device import Placement
from luthier.models.policy import Policy
from luthier.models.reference import Reference


@dataclass(slots=True)
class Parts:
    """Model, tokenizer and their helpers, in one hand."""

    policy: Policy
    tokenizer: Any
    preparer: Any
    save_model: Callable[[Path], None]
    reference: Reference | None
    placement: Placement
    base: str
    grader: Any = None
    """A reward model that grades answers."""
