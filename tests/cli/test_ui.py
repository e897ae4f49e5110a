"""luthier ui: where it listens, whom it lets in, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from luthier.core.errors import ConfigError
from luthier.server.ui.run import Options, make_state


def command(folder: Path, *more: str) -> list[str]:
    own = ["--no-browser", "--runs", str(folder / "runs"), "--token-file", str(folder / "token")]
    return [sys.executable, "-m", "luthier", "ui", *own, *more]


def refused(folder: Path, *more: str) -> str:
    done = subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@contextmanager
def started(folder: Path, *more: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it prints."""
    with subprocess.Popen(
        command(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.slow
def test_one_life(tmp_path: Path) -> None:
    with started(tmp_path, "--port", "0") as (process, printed):
        address, _, token = printed.partition("/#token=")
        assert address.startswith("http://127.0.0.1:")
        assert token == (tmp_path / "token").read_text().strip()
        port = address.rpartition(":")[2]
        listeners = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
        assert f"0100007F:{int(port):04X}" in listeners
        assert f"00000000:{int(port):04X}" not in listeners
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"})
        assert client.get("/api/session").json()["authenticated"] is True
        message = refused(tmp_path, "--port", port)
        assert f"port {port} is held by process {process.pid} (" in message
        free = int(message.partition("--port ")[2].split()[0])
        with socket.socket() as there:
            there.bind(("127.0.0.1", free))
        with started(tmp_path, "--port", str(free)) as (second, _):
            other = f"http://127.0.0.1:{free}/api/session"
            assert httpx.get(other, headers=dict(client.headers)).json()["authenticated"] is True
            second.send_signal(signal.SIGTERM)
            assert second.wait(15) == 0
        with client.stream("GET", "/api/changes", timeout=5) as stream:
            next(stream.iter_raw())
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 0
        assert process.stderr is not None
        told = process.stderr.read()
        assert token not in told
        assert "jobs go on" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data", "none"], "none is no folder"),
        (["--models", "none"], "none is no folder"),
        (["--host", "no.such.name.invalid", "--port", "0"], "cannot listen on 'no.such.name.invalid'"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen on '192.0.2.1'"),
        (["--port", "70000"], "65535"),
        (["--no-auth"], "no_auth"),
        (["--runs", "file"], "--runs file is no folder"),
    ],
)
def test_what_cannot_be(tmp_path: Path, more: list[str], said: str) -> None:
    (tmp_path / "file").write_text("x")
    assert said in refused(tmp_path, *more)
    assert not (tmp_path / "runs").exists()


def options(folder: Path, **more: Any) -> Options:
    return Options(**{"runs": folder / "runs", "token_file": folder / "token", **more})


def test_folders_that_everybody_may_change(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    with pytest.raises(ConfigError, match="chmod o-w"):
        make_state(options(tmp_path))


def test_a_folder_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_state(options(tmp_path))
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, how: how != os.W_OK and may(path, how))
    with pytest.raises(ConfigError, match="can only be read; choose another folder"):
        make_state(options(tmp_path))


def test_the_runs_folder_is_made_for_its_owner(tmp_path: Path) -> None:
    make_state(options(tmp_path))
    assert (tmp_path / "runs").stat().st_mode & 0o777 == 0o700


def test_a_browser_gets_a_file_and_no_token_in_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.server.ui import run

    opened: list[str] = []
    monkeypatch.setattr(run.webbrowser, "open", opened.append)
    monkeypatch.setattr(run, "_has_screen", lambda: True)
    with run._browser("http://127.0.0.1:1/#token=secret", tmp_path, wanted=True):
        while not opened:
            os.sched_yield()
        file = Path(opened[0].removeprefix("file://"))
        assert "secret" not in opened[0]
        assert file.stat().st_mode & 0o777 == 0o600
        assert "http://127.0.0.1:1/#token=secret" in file.read_text()
    assert not file.exists()
    with run._browser("http://127.0.0.1:1/", tmp_path, wanted=False):
        assert len(opened) == 1
