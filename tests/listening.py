"""The page's server on a socket of its own, for what a client in this process cannot do: streams, cuts, restarts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from helpers import wait_for

from luthier.server.listen import open_socket
from luthier.server.ui.run import Options, Server, make_state
from luthier.server.ui.state import State


@dataclass
class Listening:
    """A server that listens."""

    state: State
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.state.token}", "X-Luthier": "1"}

    def stream(self, run: str, last: int | None = None, **params: Any) -> Iterator[tuple[str, str, str]]:
        """Yield (event, id, data) of a run's stream until it ends; nothing where it answers 204."""
        headers = self.headers | ({"Last-Event-ID": str(last)} if last is not None else {})
        with httpx.stream(
            "GET", f"{self.url}/api/runs/{run}/events", headers=headers, params=params, timeout=20
        ) as reply:
            assert reply.status_code in (200, 204)
            yield from parsed(reply.iter_lines())

    def raw(self, data: bytes, *, end: bool = False, seconds: float = 15.0) -> bytes:
        """Send bytes and return all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            found = b""
            while part := connection.recv(65536):
                found += part
            return found


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Yield events of lines, as a browser reads them."""
    event: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif "data" in event:
            yield event.get("event", "message"), event.get("id", ""), event["data"]
            event = {}


@contextmanager
def listening(folder: Path, **options: Any) -> Generator[Listening]:
    """Serve the folder `runs` of a folder on a free port, in a thread."""
    state = make_state(Options(runs=folder / "runs", token_file=folder / "token", **options))
    with open_socket("127.0.0.1", 0) as listener:
        server = Server(state)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Listening(state, listener.getsockname()[1])
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive(), "the server does not end"
