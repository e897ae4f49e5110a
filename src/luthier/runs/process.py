"""Who a process is: a pid alone is reused, a pid with its start time and boot is not."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Identity:
    """One process on one machine since one boot."""

    pid: int
    host: str
    started: float
    """Start time of the process, seconds since the epoch."""
    boot: str

    @classmethod
    def here(cls) -> Identity:
        """Return the identity of this process."""
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time(), _boot_id())

    @classmethod
    def from_dict(cls, plain: dict[str, Any] | None) -> Identity | None:
        """Read what `as_dict` wrote; None when it is not an identity."""
        try:
            return cls(**plain) if plain else None
        except TypeError:
            return None

    def as_dict(self) -> dict[str, Any]:
        """Return the plain form for JSON."""
        return asdict(self)

    def is_alive(self) -> bool:
        """Tell whether that very process still runs on this machine; a process elsewhere counts as alive."""
        if self.host != socket.gethostname():
            return True
        if self.boot != _boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(psutil.boot_time())
