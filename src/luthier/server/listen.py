"""Sockets and the life of a server: what listens, what comes in that is no HTTP, and how signals end it."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.core.errors import ConfigError
from luthier.server.passing import new_id

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
HEADER_SECONDS = 15.0
"""A connection that has not sent the head of a request by then is closed."""


class Http(H11Protocol):
    """Answers bytes that are no HTTP in the shape of errors, and waits for nobody for ever."""

    _deadline: asyncio.TimerHandle | None = None

    @staticmethod
    def refusal() -> bytes:
        """Return the body of the reply to what is no request."""
        return b'{"error": {"message": "invalid HTTP", "code": "invalid_http"}}'

    def send_400_response(self, msg: str) -> None:
        """Say that this is no request, and close."""
        del msg
        body = self.refusal()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers.append(("x-request-id", new_id()))
        parts = [h11.Response(status_code=400, headers=headers, reason="Bad Request"), h11.Data(data=body)]
        for part in [*parts, h11.EndOfMessage()]:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Expect a request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take what comes."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_deadline()
        elif self._deadline is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class SignalledServer(uvicorn.Server):
    """Stops in order at the first signal."""

    hurried = False
    """Whether a second signal came."""

    def stop(self) -> None:
        """End after this moment's work."""
        self.should_exit = True

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
        """Stop; the second signal is remembered as hurry."""
        self.hurried, self.should_exit = self.should_exit, True


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ConfigError when the address cannot be had."""
    try:
        return listening_socket(host, port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; take another port (0: a free one)"
        ) from error
