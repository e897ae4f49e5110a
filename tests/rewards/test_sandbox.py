"""Programs that go wrong in every way, and what is left of them afterwards."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from luthier.rewards import sandbox
from luthier.rewards.sandbox import MOST_OUTPUT, Limits, Ran, run_program, run_tests

LIMITS = Limits(seconds=1.0, memory=1 << 28)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Not below tmp_path: programs run as nobody, who may not enter it.
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield
    assert os.listdir(folder) == []
    os.rmdir(folder)


def graded(program: str, *tests: str) -> Ran:
    return run_tests(program, list(tests) or ["True"], LIMITS)


def test_right_and_wrong() -> None:
    ran = graded("def f(x):\n    return x + 1", "assert f(1) == 2", "assert f(1) == 3", "f(", "assert f(2) == 3")
    assert ran.report == [True, False, False, True]
    assert "test 2: AssertionError" in ran.output
    assert "test 3: SyntaxError" in ran.output


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def f(", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("import os\nfor _ in range(10):\n    os.fork()", "BlockingIOError"),
        ("import threading\nthreading.Thread(target=print).start()", "can't start new thread"),
        ("open('big', 'wb').write(bytes(1 << 25))", "File too large"),
        ("files = [open('a', 'w') for _ in range(100)]", "Too many open files"),
        ("input()", "EOFError"),
        ("class E(Exception):\n    def __str__(self): raise KeyError\nraise E", ""),
    ],
)
def test_programs_that_fail(program: str, message: str) -> None:
    ran = graded(program)
    assert ran.report == [False]
    assert message in ran.output


@pytest.mark.parametrize(
    "program", ["import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)", "import ctypes; ctypes.string_at(0)"]
)
def test_programs_that_end_the_process(program: str) -> None:
    assert graded(program).report is None


def test_a_loop_is_ended() -> None:
    began = time.monotonic()
    ran = graded("while True: pass")
    assert ran.report is None
    assert ran.exit_code is not None
    assert ran.exit_code < 0
    assert time.monotonic() - began < 4


def test_a_program_that_ignores_its_alarm_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS_TO_START", 0.5)
    began = time.monotonic()
    ran = graded("import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(60)")
    assert (ran.exit_code, ran.report) == (None, None)
    assert time.monotonic() - began < 4


def test_output_is_cut() -> None:
    ran = run_program("print('a' * (1 << 22))", LIMITS)
    assert ran.exit_code == 0
    assert ran.output == "a" * MOST_OUTPUT
    endless = run_program("while True: print('a' * 1000)", LIMITS)
    assert endless.exit_code != 0
    assert len(endless.output) == MOST_OUTPUT


def test_whole_programs_read_their_input() -> None:
    ran = run_program("print(__name__, input()[::-1])", LIMITS, stdin="äbc\n")
    assert (ran.exit_code, ran.output) == (0, "__main__ cbä\n")


def test_environment_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    ran = run_program("import os\nprint('SECRET_OF_OURS' in os.environ, os.listdir('.'))\nopen('a', 'w')", LIMITS)
    assert (ran.exit_code, ran.output) == (0, "False []\n")


def may_leave_the_network() -> bool:
    tries = (["unshare", "--net", "true"], ["unshare", "--user", "--net", "true"])
    return shutil.which("unshare") is not None and any(
        subprocess.run(each, check=False, capture_output=True).returncode == 0 for each in tries
    )


def test_without_network_where_the_kernel_lets_us() -> None:
    if not may_leave_the_network():
        pytest.skip("the kernel gives this user no network of its own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        ran = run_program(program, LIMITS)
    assert ran.exit_code == 1
    assert "unreachable" in ran.output
