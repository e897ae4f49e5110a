"""The processor: allocator, threads, and which number format it multiplies fast."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

import psutil
import torch

FAST_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")


def usable_cores() -> int:
    """Return the cores that this process may use: affinity and cgroup quota, not the count of the board."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, max(1, round(int(limit) / int(period))))
    return cores


def free_memory() -> int:
    """Return the bytes that this process may still take: of the machine, and of the cgroup that it is in."""
    free, cgroup = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(most) - int(used.read_text())))
    return free


@cache
def processor_flags() -> frozenset[str]:
    """Return the instruction-set flags of the processor; empty where they cannot be read."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def processor_name() -> str:
    """Return model name and the flags that matter, as figures should name them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
    flags = " ".join(flag for flag in known if flag in processor_flags()) or "no flags"
    return f"{name} ({usable_cores()} cores; {flags})"


def has_fast_bfloat16() -> bool:
    """Tell whether bfloat16 products run faster than float32 ones here."""
    return any(flag in processor_flags() for flag in FAST_BFLOAT16_FLAGS)


def prepare_process(threads: int = 0) -> None:
    """Set threads and the allocator; call before the first tensor.

    glibc maps every block over 128 KiB anew and gives it back at once, so each large temporary is paged in again;
    keeping such blocks made a whole LoRA step 1.3 to 1.4 times faster. `Heap` gives back what that leaves in pieces.
    """
    torch.set_num_threads(threads or usable_cores())
    if (libc := _glibc()) is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None


def give_pages_back() -> bool:
    """Hand free memory of the heap back to the system. Returns whether that can be done here."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    return libc is not None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Heap:
    """Keeps the heap from growing: blocks of ever other sizes break it into pieces that fit nothing any more.

    Without it a LoRA run on rows of different length grew by 5 MB a step, without end.
    """

    def __init__(self, growth: float = 1.25) -> None:
        """`growth`: times the usual size at which free pages go back to the system."""
        self.growth, self._usual = growth, 0

    def tidy(self) -> bool:
        """Give free pages back when the process has grown; call between steps. Returns whether it did."""
        if _glibc() is None:
            return False
        resident = _resident_bytes()
        self._usual = self._usual or resident
        if resident <= self.growth * self._usual:
            return False
        give_pages_back()
        self._usual = 0  # the next step shows what is usual
        return True
