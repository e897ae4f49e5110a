"""What every request passes: who asks, under which name, from which page, how much; and what a browser may do."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import traceback
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from luthier.core.errors import LuthierError
from luthier.core.log import logger, printable
from luthier.core.masking import mask_text
from luthier.server.passing import LOOPBACK, Passing, host_of, is_loopback
from luthier.server.ui.failures import Refused, leaves_unread, of_error
from luthier.server.ui.said import language_of, speaking
from luthier.server.ui.session import stale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from luthier.server.ui.state import State

API = "/api"
OPEN_PATHS = {"/api/health": {"GET", "HEAD"}, "/api/session": {"GET", "HEAD", "POST"}}
"""Paths below /api that need no token, and the methods for which that holds."""
UPLOADS = "/api/data/uploads/"
MOST_BODY_BYTES = 2 << 20
MOST_HEADERS = 100
MOST_RANGES = 1
BODY_SECONDS = 20.0
"""A body of which nothing comes for so long is given up."""
LOG_CHARACTERS = 1800
_READS = {"GET", "HEAD", "OPTIONS"}
_SAME = {"", "same-origin", "none"}
"""What browsers say of requests that no other page made."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Guard:
    """Stands in front of the application of the page."""

    def __init__(self, app: ASGIApp, *, state: State) -> None:
        self._app, self._state = app, state
        self._names = LOOPBACK | {state.host.lower()}
        if not is_loopback(state.host):
            self._names |= {socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope["path"].startswith(UPLOADS)
        passing = _Passing(scope, receive, send, self._state.max_upload_bytes if upload else MOST_BODY_BYTES)
        with speaking(language_of(passing.headers.get("accept-language", ""))):
            await self._let_through(scope, passing)

    async def _let_through(self, scope: Scope, passing: _Passing) -> None:
        try:
            self._check(scope, passing.headers)
            passing.check_length()
            await self._app(scope, passing.receive, passing.send)
        except LuthierError as error:
            await passing.refuse(of_error(error), unread=leaves_unread(error))
        except Exception as error:  # noqa: BLE001  whatever it is, the page gets a reply that it can read
            told = mask_text("".join(traceback.format_exception(error)))[-LOG_CHARACTERS:]
            logger.error("request %s failed\n%s", passing.id, told)
            said = f"this request failed: {type(error).__name__}; the log of the server says more under {passing.id}"
            await passing.refuse(of_error(Refused(500, "server_error", said)))

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise Refused for what must not come in."""
        if len(scope["headers"]) > MOST_HEADERS:
            raise Refused(431, "too_many_headers", f"a request has at most {MOST_HEADERS} headers")
        if headers.get("range", "").count(",") >= MOST_RANGES:
            raise Refused(416, "range", "one range at a time")
        self._check_names(headers)
        path, method = scope["path"], scope["method"]
        if path != API and not path.startswith(f"{API}/"):
            return
        if headers.get("sec-fetch-site", "").lower() not in _SAME:
            raise Refused(403, "origin", "pages of other places may not ask")
        scope["luthier.in"] = self._is_let_in(headers)
        if not scope["luthier.in"] and method not in OPEN_PATHS.get(path, ()):
            raise stale()
        if method not in _READS and headers.get("x-luthier") != "1":
            raise Refused(403, "header_missing", "a request that changes something carries the header X-Luthier: 1")

    def _check_names(self, headers: Headers) -> None:
        """Refuse foreign names: a page elsewhere can let its own name point here, and then Host and Origin carry it."""
        given = headers.getlist("host")
        host = host_of(given[0]) if len(given) == 1 and "@" not in given[0] else ""
        if host not in self._names and not (self._answers_everywhere and _is_address(host)):
            raise Refused(403, "host", f"this server does not answer as {printable(host)}")
        for origin in headers.getlist("origin"):
            if not _is_same(origin, given[0]):
                raise Refused(403, "origin", f"pages of {printable(origin)} may not ask")

    @property
    def _answers_everywhere(self) -> bool:
        return self._state.host in ("0.0.0.0", "::")

    def _is_let_in(self, headers: Headers) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind:
            return kind.lower() == "bearer" and self._state.sessions.is_token(shown.strip())
        cookie = self._state.sessions.cookie_of(headers.get("cookie", ""))
        return bool(cookie) and self._state.sessions.knows(cookie)


def _is_address(host: str) -> bool:
    """Tell whether a name is a number: such a one cannot be made to point here from elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_ORIGIN = re.compile(r"https?://[^/@?#\s]+")


def _is_same(origin: str, host: str) -> bool:
    """Tell whether a page is one of ours: the same name and port as it asked under."""
    if _ORIGIN.fullmatch(origin.lower()) is None:
        return False
    try:
        page, here = urlsplit(origin.lower()), urlsplit(f"//{host.lower()}")
        usual = 443 if page.scheme == "https" else 80
        return page.hostname == here.hostname and (page.port or usual) == (here.port or usual)
    except ValueError:
        return False


class _Passing(Passing):
    """One request on its way through."""

    _complete = False

    def too_large(self, found: str, most: int) -> Refused:
        """Return the error about a body of `found` bytes."""
        return Refused(413, "body_too_large", f"the body has {found} bytes; at most {most} are read")

    def more_headers(self) -> Mapping[str, str]:
        """Return headers of every reply."""
        found = {**super().more_headers(), **SECURITY_HEADERS}
        return {**found, "cache-control": "no-store"} if self.scope["path"].startswith(API) else found

    async def receive(self) -> Message:
        """Hand on what comes, up to the bound, and while something comes."""
        if self._complete:
            return await super().receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await super().receive()
        except TimeoutError:
            said = f"nothing of the body came for {BODY_SECONDS:.0f} seconds"
            raise Refused(408, "body_stopped", said) from None
        self._complete = not message.get("more_body", False)
        return message
