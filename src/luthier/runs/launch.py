"""Processes of jobs: started so that they outlive who started them, known by identity, signalled by identity alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from luthier.runs.process import Identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOG, OUT, PROGRESS = "log.txt", "out.json", "progress.json"
"""Files of a job's folder: standard error, standard output, and how far the command is."""
OF_THE_PAGE = "LUTHIER_UI_"
"""Variables that begin like this are for the server and stay there."""
MOST_MEMORY_FIRST = "500"
"""Where memory runs out, the kernel takes a job before the page and the shell that show it (0 is usual, 1000 most)."""


def start(
    folder: Path, command: Sequence[str], more: Mapping[str, str] | None = None, cwd: str | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` as the job of `folder` in a session of its own, reading nothing, writing to files.

    Raises OSError where there is no process, no space or no folder to be had.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(OF_THE_PAGE)}
    environment |= {"LUTHIER_PROGRESS": str(folder / PROGRESS), "PYTHONUNBUFFERED": "1", **(more or {})}
    with (folder / OUT).open("ab") as out, (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.runs.begin", str(folder), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            start_new_session=True,
            close_fds=True,
            env=environment,
            cwd=cwd,
        )
    with suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(MOST_MEMORY_FIRST)
    return process


def identity_of(pid: int) -> Identity | None:
    """Return who `pid` is now; None where there is no such process."""
    try:
        return Identity.of(pid)
    except psutil.Error:
        return None


def reap(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a child that has ended, negative for a signal, and end what it has left behind.

    None while it runs. The child stays a zombie until its group is empty, so that its number is nobody else's.
    """
    if process.returncode is None and hasattr(os, "waitid"):
        with suppress(ChildProcessError):
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            _kill_group(process.pid)
    return process.poll()


def ended(identity: Identity) -> bool:
    """Tell whether a process that is not our child has ended; zombies that nobody waits for have."""
    return not identity.is_alive()


def exit_code_of(identity: Identity) -> int | None:
    """Return the exit code of an ended process that its parent has not waited for; None where it is not known."""
    found = identity_of(identity.pid)
    if found is None or not found.is_same(identity):
        return None
    try:
        fields = Path(f"/proc/{identity.pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] != "Z":
            return None
        code = os.waitstatus_to_exitcode(int(fields[-1]))
    except (OSError, ValueError, IndexError):
        return None
    _kill_group(identity.pid)
    return code


def send(identity: Identity, number: signal.Signals, *, group: bool) -> bool:
    """Signal a process, or with `group` it and all that it started; False where it is not that process any more."""
    if identity.host != socket.gethostname() or not identity.is_alive():
        return False
    try:
        # Held by a descriptor, the number cannot become another process's between the look and the signal.
        held = os.pidfd_open(identity.pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return False
    try:
        if not identity.is_alive():
            return False
        if group and _leads_a_group(identity.pid):
            os.killpg(identity.pid, number)
        elif held is not None:
            signal.pidfd_send_signal(held, number)
        else:
            os.kill(identity.pid, number)
    except ProcessLookupError:
        return False
    finally:
        if held is not None:
            os.close(held)
    return True


def memory_of(identity: Identity) -> int:
    """Return the bytes that a process and its children hold; 0 where it has ended."""
    try:
        process = psutil.Process(identity.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _leads_a_group(pid: int) -> bool:
    """Tell whether a group is the job's own: ours is not to be signalled."""
    try:
        return os.getpgid(pid) == pid != os.getpgrp()
    except ProcessLookupError:
        return False


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if _leads_a_group(pid):
            os.killpg(pid, signal.SIGKILL)
