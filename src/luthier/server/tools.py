"""Tools of a request: what is told of them, what may be called, and how calls are told from text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.server.speech import PlainListener

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.types import Sampling
    from luthier.engines.shaping import Guide
    from luthier.server.requests import ChatRequest
    from luthier.server.speech import Listener
    from luthier.server.voice import Voice


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What shapes an answer and what reads it."""

    guide: Callable[[], Guide] | None = None

    def listener(self, how: Sampling, *, opened: str) -> Listener:
        """Return what hears one answer."""
        return PlainListener()


def toolbox_of(body: ChatRequest, voice: Voice) -> Toolbox:
    """Return what a request asks for. Raises ApiError for what cannot be honoured."""
    return Toolbox()
