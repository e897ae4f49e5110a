"""What every request passes: its id, who may ask, how large it may be, and a reply in the shape of errors."""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from luthier.core.log import logger, printable
from luthier.server.errors import ApiError
from luthier.server.inbox import ClientGone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from luthier.server.keys import Keys
    from luthier.server.service import Service

OPEN_PATHS = {"/health", "/ready", "/docs", "/openapi.json"}
"""Paths that need no key: they tell nothing of what is asked and answered."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINGER_SECONDS = 1.0
"""A body that is too large is thrown away this long, so that its sender reads why."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Guard:
    """Stands in front of the application."""

    def __init__(self, app: ASGIApp, *, service: Service, keys: Keys) -> None:
        self._app, self._service, self._keys = app, service, keys
        limits = service.limits
        self._hosts = LOOPBACK | {limits.host.lower()} if is_loopback(limits.host) else None
        self._origins = {origin.rstrip("/").lower() for origin in limits.allowed_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passing = _Passing(self._service, scope, receive, send, Headers(scope=scope))
        try:
            passing.allowed_origin = self._check_origin(passing.headers)
            if (
                scope["method"] == "OPTIONS"
                and passing.allowed_origin
                and "access-control-request-method" in passing.headers
            ):
                await passing.preflight()
                return
            self._check_key(scope, passing.headers)
            passing.check_length()
            await self._app(scope, passing.receive, passing.send)
        except ApiError as error:
            await passing.refuse(error)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets a reply that it can read
            logger.exception("request %s failed", passing.id)
            await passing.refuse(ApiError(500, f"this request failed: {type(error).__name__}; the log says more"))
        finally:
            passing.count()

    def _check_origin(self, headers: Headers) -> str:
        """Return the origin of a page that may ask, "" if no page asks. Raises ApiError for foreign names.

        A page elsewhere can let its own name point here (DNS rebinding); then Host and Origin carry that name.
        """
        host = _host(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, f"this server answers on this machine only, and not as {printable(host)}", code="host")
        origin = headers.get("origin", "").lower()
        if not origin:
            return ""
        place = origin.partition("://")[2]
        if origin in self._origins or _host(place) in LOOPBACK or place == headers.get("host", "").lower():
            return headers["origin"]
        raise ApiError(
            403, f"pages of {printable(origin)} may not ask; allowed_origins names those that may", code="origin"
        )

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys.required or scope["path"] in OPEN_PATHS:
            return
        kind, _, secret = headers.get("authorization", "").partition(" ")
        owner = self._keys.owner(secret.strip()) if kind.lower() == "bearer" and secret.strip() else None
        if owner is None:
            said = "this key is unknown here" if secret else "a key is needed: Authorization: Bearer KEY"
            raise ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        scope["luthier.key"] = owner


def new_id() -> str:
    """Return an id for a request that brings none."""
    return f"req_{uuid.uuid4().hex}"


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    return host.lower() in LOOPBACK or host.startswith("127.")


def _host(header: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return header


class _Passing:
    """One request on its way through."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        self._service, self._scope, self._receive, self._send = service, scope, receive, send
        self.headers = headers
        given = headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else new_id()
        self.allowed_origin = ""
        self._read, self._most = 0, service.limits.max_body_bytes
        self._status = 0

    def check_length(self) -> None:
        """Raise ApiError when a body says that it is too large; it is not read."""
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large(f"{int(length)}")

    def _too_large(self, found: str) -> ApiError:
        return ApiError(413, f"the body has {found} bytes; at most {self._most} are read", code="body_too_large")

    async def receive(self) -> Message:
        """Hand on what comes, up to the bound."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._most:
                raise self._too_large(f"more than {self._most}")
        return message

    async def send(self, message: Message) -> None:
        """Hand on what is answered, with the id of the request."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._more_headers().items():
                headers[name] = value
        await self._send(message)

    def _more_headers(self) -> Mapping[str, str]:
        found = {"x-request-id": self.id, "x-content-type-options": "nosniff"}
        if self.allowed_origin:
            found |= {
                "access-control-allow-origin": self.allowed_origin,
                "access-control-expose-headers": "x-request-id, x-ignored-fields, retry-after",
                "vary": "Origin",
            }
        return found

    async def preflight(self) -> None:
        """Tell a browser what its page may send."""
        allowed = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
            (b"access-control-max-age", b"600"),
        ]
        await self._answer(204, allowed, b"")

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun already."""
        if self._status:
            return
        response = error.response()
        # What is left of the body is never read, so the connection cannot carry another request.
        closing = [(b"connection", b"close")] if error.status == 413 else []
        if not closing:
            await self._answer(error.status, response.raw_headers, bytes(response.body))
            return
        await self.send(
            {"type": "http.response.start", "status": error.status, "headers": [*response.raw_headers, *closing]}
        )
        await self.send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def count(self) -> None:
        """Count the reply under the path as it is declared, so that made-up paths make no new numbers."""
        route = self._scope.get("route")
        path = getattr(route, "path", "other")
        # A connection that was gone before its answer began has no status.
        self._service.metrics.requests.labels(path, str(self._status or 499)).inc()
