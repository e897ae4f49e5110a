"""One request on its way through a server: its id, how much of its body is read, and how it is refused."""

from __future__ import annotations

import asyncio
import re
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINGER_SECONDS = 1.0
"""A body that is too large is thrown away this long, so that its sender reads why."""


def new_id() -> str:
    """Return an id for a request that brings none."""
    return f"req_{uuid.uuid4().hex}"


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    return host.lower() in LOOPBACK or host.startswith("127.")


def host_of(header: str) -> str:
    """Return the name in a Host header, without its port.

    >>> host_of("LocalHost:80"), host_of("[::1]:80")
    ('localhost', '::1')
    """
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return header


class Passing(ABC):
    """One request; a server says in a subclass which headers replies carry and how it calls a body too large."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else new_id()
        self.status = 0
        """Of the reply; 0 before it begins."""
        self._read, self._most = 0, most

    def more_headers(self) -> Mapping[str, str]:
        """Return headers of every reply."""
        return {"x-request-id": self.id, "x-content-type-options": "nosniff"}

    @abstractmethod
    def too_large(self, found: str, most: int) -> Exception:
        """Return the error about a body of `found` bytes."""

    def check_length(self) -> None:
        """Raise when a body says that it is too large; it is not read."""
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most:
            raise self.too_large(length, self._most)

    async def receive(self) -> Message:
        """Hand on what comes, up to the bound."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._most:
                raise self.too_large(f"more than {self._most}", self._most)
        return message

    async def send(self, message: Message) -> None:
        """Hand on what is answered, with the headers of every reply."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self.more_headers().items():
                headers[name] = value
        await self._send(message)

    async def refuse(self, response: Response, *, unread: bool = False) -> None:
        """Answer, unless an answer has begun already; `unread`: the body is not, or not to its end.

        What is left of a body is never read, so the connection cannot carry another request.
        """
        if self.status:
            return
        body = bytes(response.body)
        if not unread:
            await self.answer(response.status_code, response.raw_headers, body)
            return
        headers = [*response.raw_headers, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole reply."""
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})
