"""Pieces of answers on their way from the engine's thread to one connection.

The engine never waits for a connection. What a slow reader has not taken yet is held here up to a bound; beyond it the
request is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.engines.shaping import Piece

MOST_HELD = 65536
"""Numbers held for one connection: each token counts one and one more for every alternative reported beside it."""


class ClientGone(Exception):
    """The connection was closed from the other side."""


class Inbox:
    """Filled by the engine's thread, emptied by the connection's task."""

    def __init__(self, overflowed: Callable[[], None], most: int = MOST_HELD) -> None:
        self._overflowed, self._most, self._held = overflowed, most, 0
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._failure: BaseException | None = None
        self._lock = Lock()

    def put(self, number: int, piece: Piece) -> None:
        """Take a piece of an answer to prompt `number`. Called by the engine's thread; never waits."""
        with self._lock:
            if self._failure is not None:
                return
            self._held += sum(1 + len(token.top) for token in piece.tokens)
            full = self._held > self._most
            if not full:
                self._pieces.append((number, piece))
            wake = len(self._pieces) == 1
        if full:
            self._loop.call_soon_threadsafe(self._overflowed)
        elif wake:
            self._loop.call_soon_threadsafe(self._arrived.set)

    def fail(self, error: BaseException) -> None:
        """Let the reader end with `error`, now. Called by the connection's own loop."""
        with self._lock:
            self._failure = self._failure or error
            self._pieces.clear()
        self._arrived.set()

    async def take(self, patience_seconds: float) -> list[tuple[int, Piece]]:
        """Wait for pieces and return all that are there; none when patience ends. Raises what `fail` was given."""
        try:
            async with asyncio.timeout(patience_seconds):
                await self._arrived.wait()
        except TimeoutError:
            return []
        with self._lock:
            self._arrived.clear()
            if self._failure is not None:
                self._arrived.set()
                raise self._failure
            found, self._held = list(self._pieces), 0
            self._pieces.clear()
        return found
