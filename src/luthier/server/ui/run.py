"""Start the page: folders and token, a socket, a browser; and end it, leaving jobs alone."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import webbrowser
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import uvicorn

from luthier.core.errors import ConfigError
from luthier.core.log import logger, printable
from luthier.core.paths import beside
from luthier.runs.index import Index
from luthier.runs.job_files import OWN
from luthier.runs.jobs import Jobs
from luthier.server.listen import Http, SignalledServer, listening_socket
from luthier.server.passing import is_loopback
from luthier.server.ui.app import make_app
from luthier.server.ui.failures import Refused, of_error
from luthier.server.ui.roots import Roots
from luthier.server.ui.session import Sessions, default_token_file
from luthier.server.ui.state import State
from luthier.server.ui.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator

PORT = 7860
PORTS_TRIED = 100
_GRACE_SECONDS = 2
"""Replies under way get this long when the server ends; streams end at once."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    host: str = "127.0.0.1"
    port: int = PORT
    runs: Path = Path("runs")
    data: list[Path] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    token_file: Path | None = None
    allow_remote_code: bool = False
    browser: bool = True


class _Http(Http):
    @staticmethod
    def refusal() -> bytes:
        """Return the body of the reply to what is no request."""
        return bytes(of_error(Refused(400, "invalid_http", "this is no HTTP request")).body)


class Server(SignalledServer):
    """Ends at the first signal; jobs are processes of their own and hear nothing of it."""

    def __init__(self, state: State) -> None:
        super().__init__(
            uvicorn.Config(
                make_app(state),
                http=_Http,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._state = state

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams end, then close."""
        self._state.closing.set()
        await super().shutdown(sockets)


def make_state(options: Options) -> State:
    """Return what the routes share. Raises ConfigError for folders that are not there, or that others may change."""
    data, models = (tuple(map(_folder, each)) for each in (options.data, options.models))
    roots = Roots(_own_folder(options.runs), data, models)
    return State(
        roots=roots,
        sessions=Sessions((options.token_file or default_token_file()).expanduser()),
        jobs=Jobs(roots.runs),
        index=Index(roots.runs),
        worker=Worker(roots.runs / OWN / "worker.log", allow_remote_code=options.allow_remote_code),
        allow_remote_code=options.allow_remote_code,
        host=options.host,
    )


def _own_folder(path: Path) -> Path:
    found = path.expanduser().resolve()
    if found.exists() and not found.is_dir():
        raise ConfigError(f"--runs {path} is no folder")
    try:
        found.mkdir(parents=True, exist_ok=True, mode=0o700)
        (found / OWN).mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"--runs {path} cannot be written to: {error.strerror}; choose another folder") from error
    if not os.access(found, os.W_OK) or not os.access(found / OWN, os.W_OK):
        raise ConfigError(f"--runs {path} can only be read; choose another folder, `luthier runs` shows what is in it")
    if found.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"--runs {path}: everybody may change what is in it; say chmod o-w {found}")
    return found


def _folder(path: Path) -> Path:
    found = path.expanduser()
    if not found.is_dir():
        raise ConfigError(f"{path} is no folder; --data and --models name folders that the page may read")
    return found


def serve(options: Options) -> None:
    """Answer until a signal comes. Raises ConfigError for an address that cannot be had."""
    with _listen(options.host, options.port) as listening:
        state = make_state(options)
        state.warm = True
        address = _address(options.host, listening.getsockname()[1])
        if not is_loopback(options.host):
            logger.warning(
                "other machines reach this page, and what they send is not encrypted; whoever has the token may "
                "start programs here. An ssh tunnel to 127.0.0.1 is safer"
            )
        print(f"{address}/#token={state.token}", flush=True)
        with _browser(f"{address}/#token={state.token}", state.roots.runs / OWN, wanted=options.browser):
            Server(state).run([listening])
    logger.info("the page has ended; jobs go on, and `luthier ui` shows them again")


def _address(host: str, port: int) -> str:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listening_socket(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            said = error.strerror or error
            raise ConfigError(f"cannot listen on {printable(host)} port {port}: {said}", code="port") from error
    free = _next_free(host, port)
    instead = f"--port {free} is free" if free else "--port 0 takes a free one"
    raise ConfigError(f"port {port} is held by {_holder(port)}; {instead}", code="port_in_use")


def _holder(port: int) -> str:
    """Return the process that listens on a port, in words."""
    try:
        for each in psutil.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                process = psutil.Process(each.pid)
                return f"process {each.pid} ({printable(' '.join(process.cmdline()) or process.name())})"
    except psutil.Error:
        pass
    return "a process of somebody else"


def _next_free(host: str, port: int) -> int | None:
    for candidate in range(port + 1, min(port + PORTS_TRIED, 65536)):
        try:
            listening_socket(host, candidate).close()
        except OSError:
            continue
        return candidate
    return None


@contextmanager
def _browser(address: str, folder: Path, *, wanted: bool) -> Generator[None]:
    """Open the page, where there is a screen.

    Others see the arguments of processes, so the browser gets a file that only its owner reads and that leads on.
    """
    if not (wanted and _has_screen()):
        yield
        return
    page = beside(folder / "open").with_suffix(".html")
    with os.fdopen(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(address)}"><title>luthier</title>'
        )
    try:
        threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()
        yield
    finally:
        page.unlink(missing_ok=True)


def _has_screen() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
