"""Listen, and stop in order."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import uvicorn

from luthier.core.errors import ConfigError, LuthierError
from luthier.core.log import logger
from luthier.server.app import make_app
from luthier.server.errors import bad
from luthier.server.listen import Http, SignalledServer, open_socket
from luthier.server.passing import is_loopback
from luthier.server.service import Service

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from luthier.config.schema import ServeConfig
    from luthier.server.keys import Keys
    from luthier.workflows.serve import Plan

_AFTER_GRACE_SECONDS = 3.0
"""Connections get this long to take the error that ends them."""


class _Http(Http):
    @staticmethod
    def refusal() -> bytes:
        """Return the body of the reply to what is no request."""
        return json.dumps(bad("Invalid HTTP request received.", None, "invalid_http").body).encode()


class Server(SignalledServer):
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
        self._loop: asyncio.AbstractEventLoop | None = None
        service.on_failure = self.stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, let what runs end, then close."""
        self._loop = asyncio.get_running_loop()
        self.service.stop_soon(0.0 if self.hurried else self.service.limits.shutdown_grace_seconds)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at the second signal what runs is given up."""
        super().handle_exit(sig, frame)
        if self.hurried and self._loop is not None:
            self._loop.call_soon_threadsafe(self.service.give_up)


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
