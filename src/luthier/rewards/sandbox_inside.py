"""The inside of the sandbox: sets the limits, then runs the program. Runs alone, without luthier."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress

NOBODY = 65534
_NO_NEW_PRIVILEGES, _DIE_WITH_PARENT, _KEEP_CAPABILITIES = 38, 1, 8
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_READ_ANY_FILE = 1 << 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def main(orders: int, back: int) -> None:
    """Read the order, limit this process, run the program, and write the report."""
    with open(orders, encoding="utf-8") as file:
        order = json.load(file)
    parent = os.getppid()
    _leave_network()
    _become_nobody()
    _set_limits(order["limits"])
    _die_with(parent)
    program, tests, key = order["program"], order.get("tests"), order["key"]
    del order
    if tests is None:
        os.close(back)
        _run(program, "__main__")
        return
    report = _run_tests(program, tests)
    with open(back, "w", encoding="utf-8") as file:
        file.write(f"{key}\n{json.dumps(report)}")


def _leave_network() -> None:
    """Move into a network without interfaces, alone, or where that is not allowed as another user's root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        return
    if libc.unshare(_NEW_NETWORK) != 0:
        libc.unshare(_NEW_USER | _NEW_NETWORK)


def _become_nobody() -> None:
    """Stop being root: limits on the number of processes do not bind it."""
    if os.geteuid() != 0:
        return
    os.chown(".", NOBODY, NOBODY)
    libc = ctypes.CDLL(None, use_errno=True)
    readable = _nobody_can_read()
    if not readable:
        libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return
    if not readable:
        # Python's own files belong to root alone here; of root's powers only that of reading is kept.
        sets = (_Sets * 2)(_Sets(_READ_ANY_FILE, _READ_ANY_FILE, 0), _Sets(0, 0, 0))
        libc.capset(ctypes.byref(_Header(0x20080522, 0)), sets)


def _nobody_can_read() -> bool:
    """Tell whether Python's modules are readable for others than root."""
    try:
        os.seteuid(NOBODY)
        with open(os.__file__, "rb"):
            return True
    except OSError:
        return False
    finally:
        os.seteuid(0)


def _set_limits(limits: dict[str, float]) -> None:
    seconds = max(1, int(limits["seconds"] + 0.999))
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, int(limits["memory"])),
        (resource.RLIMIT_FSIZE, int(limits["file_size"])),
        (resource.RLIMIT_NOFILE, int(limits["open_files"])),
        (resource.RLIMIT_NPROC, int(limits["processes"]) + 1),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    signal.setitimer(signal.ITIMER_REAL, limits["seconds"])


def _die_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _run(program: str, name: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": name, "__builtins__": __builtins__}
    exec(compile(program, "<answer>", "exec"), names)
    return names


def _run_tests(program: str, tests: list[str]) -> list[bool]:
    """Return for each test whether it raised nothing."""
    passed = [False] * len(tests)
    try:
        names = _run(program, "answer")
    except BaseException as error:  # noqa: BLE001  sys.exit included: a program that ends has passed nothing
        _tell("the program", error)
        return passed
    for number, test in enumerate(tests):
        try:
            exec(compile(test, f"<test {number + 1}>", "exec"), names)
            passed[number] = True
        except BaseException as error:  # noqa: BLE001  see above
            _tell(f"test {number + 1}", error)
    return passed


def _tell(what: str, error: BaseException) -> None:
    with suppress(BaseException):  # what the program made of its own exceptions and of sys.stdout
        print(f"{what}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
