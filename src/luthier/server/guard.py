"""What every request passes: its id, who may ask, how large it may be, and a reply in the shape of errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.log import logger, printable
from luthier.server.errors import ApiError
from luthier.server.inbox import ClientGone
from luthier.server.passing import LOOPBACK, Passing, host_of, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Receive, Scope, Send

    from luthier.server.keys import Keys
    from luthier.server.service import Service

OPEN_PATHS = {"/health", "/ready", "/docs", "/openapi.json"}
"""Paths that need no key: they tell nothing of what is asked and answered."""


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
        passing = _Passing(self._service, scope, receive, send)
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
            await passing.refuse(error.response(), unread=error.status == 413)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets a reply that it can read
            logger.exception("request %s failed", passing.id)
            said = ApiError(500, f"this request failed: {type(error).__name__}; the log says more")
            await passing.refuse(said.response())
        finally:
            passing.count()

    def _check_origin(self, headers: Headers) -> str:
        """Return the origin of a page that may ask, "" if no page asks. Raises ApiError for foreign names.

        A page elsewhere can let its own name point here (DNS rebinding); then Host and Origin carry that name.
        """
        host = host_of(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, f"this server answers on this machine only, and not as {printable(host)}", code="host")
        origin = headers.get("origin", "").lower()
        if not origin:
            return ""
        place = origin.partition("://")[2]
        if origin in self._origins or host_of(place) in LOOPBACK or place == headers.get("host", "").lower():
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


class _Passing(Passing):
    """One request on its way through."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send, service.limits.max_body_bytes)
        self._service = service
        self.allowed_origin = ""

    def too_large(self, found: str, most: int) -> ApiError:
        """Return the error about a body of `found` bytes."""
        return ApiError(413, f"the body has {found} bytes; at most {most} are read", code="body_too_large")

    def more_headers(self) -> Mapping[str, str]:
        """Return headers of every reply."""
        found = dict(super().more_headers())
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
        await self.answer(204, allowed, b"")

    def count(self) -> None:
        """Count the reply under the path as it is declared, so that made-up paths make no new numbers."""
        route = self.scope.get("route")
        path = getattr(route, "path", "other")
        # A connection that was gone before its answer began has no status.
        self._service.metrics.requests.labels(path, str(self.status or 499)).inc()
