"""Stop signals: the first asks for a checkpoint at the next safe place, the second ends the process."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.log import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class StopFlag:
    """Asked for in every loop that can last. Handlers only set it: saving inside one would save half an update."""

    received: int | None = None
    save_now: bool = False
    """SIGUSR1 asks for a checkpoint without stopping."""

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_signal(self) -> int:
        """Return the signal whose exit code the process takes; a closed terminal counts as SIGTERM."""
        return signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM


@contextmanager
def listening(flag: StopFlag, at_once: Callable[[int], None]) -> Iterator[StopFlag]:
    """Set `flag` at the first stop signal; at the second call `at_once` and leave."""

    def handle(number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            flag.save_now = True
        elif flag.received is None:
            flag.received = number
            logger.warning("stopping after this step with a checkpoint; once more stops at once")
        else:
            at_once(flag.exit_signal)
            os._exit(128 + flag.exit_signal)

    before = {number: signal.signal(number, handle) for number in (*STOP_SIGNALS, signal.SIGUSR1)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
