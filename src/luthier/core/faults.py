"""Named pause points where tests kill, stop or break the program; a no-op outside of tests.

`LUTHIER_TESTING=1 LUTHIER_FAULT=checkpoint.renamed:kill:2` kills the process at the second visit.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial

_visits: dict[str, int] = {}


def _signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _raise_disk_full() -> None:
    raise OSError(28, "No space left on device")


def _raise_no_memory() -> None:
    raise MemoryError("not enough memory")


_ACTIONS = {
    "kill": partial(_signal_self, signal.SIGKILL),
    "sleep": lambda: time.sleep(3600),
    **{name.lower(): partial(_signal_self, number) for name, number in signal.Signals.__members__.items()},
    "disk_full": _raise_disk_full,
    "memory": _raise_no_memory,
}


def fault_point(name: str) -> None:
    """Run the fault that the environment asks for at this place, if any; `NAME:trace` prints every visit."""
    if os.environ.get("LUTHIER_TESTING") != "1" or "LUTHIER_FAULT" not in os.environ:
        return
    wanted, action, *rest = os.environ["LUTHIER_FAULT"].split(":")
    if action == "trace":
        print(f"fault-point {name}", flush=True)
    if name != wanted or action == "trace":
        return
    _visits[name] = _visits.get(name, 0) + 1
    if _visits[name] == int(rest[0] if rest else 1):
        _ACTIONS[action]()
