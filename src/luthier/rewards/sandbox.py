"""Programs that a model wrote, run in a process with limits. A limit on accidents, not a jail.

The process has no environment, an empty folder of its own, an interpreter that ignores the user's settings, and limits
of processor time, address space, size of a file, open files and further processes. Where the kernel lets us, it has no
network. What it can still do: read files that the user may read, write where everybody may, fill a disk with many
files, and, where the user is not root, reach the user's other processes.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

_INSIDE = Path(__file__).with_name("sandbox_inside.py")
MOST_OUTPUT = 1 << 20
"""Bytes of output that are read."""
SECONDS_TO_START = 5.0
"""Added to the time on the clock, for the interpreter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """Time on the clock, and of the processor."""
    memory: int = 1 << 29
    """Bytes of address space."""
    file_size: int = 1 << 24
    """Bytes of each file, the output too."""
    open_files: int = 64
    processes: int = 0
    """Further processes and threads."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    exit_code: int | None
    """None where it took too long; negative where a signal ended it."""
    output: str
    """What it printed, errors included, from the beginning."""
    report: object = None
    """What it handed back by the channel that only our own code knows."""


def run_program(program: str, limits: Limits, *, stdin: str = "") -> Ran:
    """Run a whole program as __main__."""
    return _run({"program": program}, limits, stdin)


def run_tests(program: str, tests: list[str], limits: Limits) -> Ran:
    """Run a program as a module, then each test in its namespace; the report is one truth value a test.

    A program that ends the process early, whatever its exit code, gives no report.
    """
    return _run({"program": program, "tests": tests}, limits, "")


def _run(task: dict[str, object], limits: Limits, stdin: str) -> Ran:
    key = secrets.token_hex(16)
    order = json.dumps({**task, "key": key, "limits": asdict(limits)}).encode()
    folder = tempfile.mkdtemp(prefix="luthier-program-")
    try:
        with tempfile.TemporaryFile() as orders, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as back:
            with tempfile.TemporaryFile() as given:
                for file, content in ((orders, order), (given, stdin.encode(errors="replace"))):
                    file.write(content)
                    file.flush()
                    file.seek(0)
                exit_code = _wait(folder, limits, (orders, given, said, back))
            return Ran(exit_code, _read(said), _report(_read(back), key))
    finally:
        subprocess.run(["rm", "-rf", folder], check=False, stderr=subprocess.DEVNULL)


def _wait(folder: str, limits: Limits, files: tuple[IO[bytes], IO[bytes], IO[bytes], IO[bytes]]) -> int | None:
    orders, given, said, back = files
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": folder, "TMPDIR": folder}
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(_INSIDE), str(orders.fileno()), str(back.fileno())],
        cwd=folder,
        env=quiet,
        stdin=given,
        stdout=said,
        stderr=subprocess.STDOUT,
        pass_fds=(orders.fileno(), back.fileno()),
        start_new_session=True,
    )
    try:
        return process.wait(limits.seconds + SECONDS_TO_START)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MOST_OUTPUT).decode(errors="replace")


def _report(text: str, key: str) -> object:
    """Return what stands behind the key; None where something else was written."""
    found, _, report = text.partition("\n")
    if found != key:
        return None
    try:
        return json.loads(report)
    except ValueError:
        return None
