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
    ticks: int = 0
    """Start time in ticks since the boot, which no jump of the clock changes; 0 where the system does not tell."""

    @classmethod
    def here(cls) -> Identity:
        """Return the identity of this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return who a process is now. Raises psutil.NoSuchProcess where there is none."""
        return cls(pid, socket.gethostname(), psutil.Process(pid).create_time(), _boot_id(), _ticks(pid))

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
            return self.is_same(Identity.of(self.pid)) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def is_same(self, other: Identity) -> bool:
        """Tell whether two identities are one process: by ticks, or else by the time of day."""
        if (self.pid, self.host, self.boot) != (other.pid, other.host, other.boot):
            return False
        return self.ticks == other.ticks if self.ticks and other.ticks else abs(self.started - other.started) < 1.0


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(psutil.boot_time())


def _ticks(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
