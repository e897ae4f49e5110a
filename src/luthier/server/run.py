"""Listen, and stop in order."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.core.errors import ConfigError, LuthierError
from luthier.core.log import logger
from luthier.server.app import make_app
from luthier.server.errors import bad
from luthier.server.guard import is_loopback, new_id
from luthier.server.service import Service

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from luthier.config.schema import ServeConfig
    from luthier.server.keys import Keys
    from luthier.workflows.serve import Plan

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AFTER_GRACE_SECONDS = 3.0
"""Connections get this long to take the error that ends them."""


class _Http(H11Protocol):
    """Answers bytes that are no HTTP in the shape of errors, too."""

    def send_400_response(self, msg: str) -> None:
        """Say that this is no request, and close."""
        body = json.dumps(bad(msg, None, "invalid_http").body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers.append(("x-request-id", new_id()))
        parts = [h11.Response(status_code=400, headers=headers, reason="Bad Request"), h11.Data(data=body)]
        for part in [*parts, h11.EndOfMessage()]:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Stops in order at the first signal, and does not wait for what runs after the second."""

    def __init__(self, service: Service, keys: Keys) -> None:
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                make_app(service, keys),
                http=_Http,
                log_config=None,
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(limits.shutdown_grace_seconds + _AFTER_GRACE_SECONDS),
            )
        )
        self.service = service
        self._hurried = False
        self._loop: asyncio.AbstractEventLoop | None = None
        service.on_failure = self.stop

    def stop(self) -> None:
        """End after this moment's work."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let what runs end, then close."""
        self._loop = asyncio.get_running_loop()
        self.service.stop_soon(0.0 if self._hurried else self.service.limits.shutdown_grace_seconds)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Hear signals while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at the second signal what runs is given up."""
        self._hurried, self.should_exit = self.should_exit, True
        if self._hurried and self._loop is not None:
            self._loop.call_soon_threadsafe(self.service.give_up)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ConfigError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; take another port (0: a free one)"
        ) from error


def check_open(limits: ServeConfig, keys: Keys) -> None:
    """Raise ConfigError for an address that others reach without a key."""
    if not (is_loopback(limits.host) or keys.required or limits.allow_without_key):
        raise ConfigError(
            f"host: {limits.host} is reached from other machines, and there is no key; give --api-key or api_keys, "
            "or say allow_without_key: true"
        )


def serve(plan: Plan, keys: Keys) -> None:
    """Answer until a signal comes. Raises what kept the model from being loaded."""
    limits = plan.config.serve
    check_open(limits, keys)
    with open_socket(limits.host, limits.port) as listening:
        host, port = listening.getsockname()[:2]
        logger.info("listening on http://%s:%d/v1", f"[{host}]" if ":" in host else host, port)
        service = Service(plan, limits)
        Server(service, keys).run([listening])
    if isinstance(service.failure, LuthierError):
        raise service.failure
    if service.failure is not None:
        raise RuntimeError("the model could not be loaded") from service.failure
