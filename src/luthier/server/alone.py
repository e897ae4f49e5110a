"""Prompts without answers: log-probabilities and vectors, some prompts at a time, so that answers grow in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from luthier.core.errors import LuthierError
from luthier.server.errors import bad
from luthier.server.inbox import ClientGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from starlette.requests import Request

    from luthier.server.service import Service

    Ids = Sequence[int]

TOKENS_AT_ONCE = 2048
"""Prompts are computed together up to this many tokens."""
T = TypeVar("T")


def in_parts(prompts: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Yield prompts in their order, some at a time.

    >>> [len(part) for part in in_parts([[0] * 1500, [0] * 500, [0] * 100])]
    [2, 1]
    """
    part: list[Ids] = []
    for prompt in prompts:
        if part and sum(map(len, part)) + len(prompt) > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(prompt)
    if part:
        yield part


async def compute(
    service: Service, request: Request, prompts: Sequence[Ids], work: Callable[[list[Ids]], Sequence[T]], field: str
) -> list[T]:
    """Return what `work` makes of the prompts. Raises ApiError for those it refuses, ClientGone when nobody waits."""
    found: list[T] = []
    with service.places(len(prompts), field):
        for part in in_parts(prompts):
            if await request.is_disconnected():
                service.metrics.cancelled.labels("disconnect").inc()
                raise ClientGone
            service.ready()
            try:
                found += await service.compute(work, part)
            except LuthierError as error:
                raise bad(str(error), field, error.code) from error
    service.metrics.tokens_in.inc(sum(map(len, prompts)))
    return found
