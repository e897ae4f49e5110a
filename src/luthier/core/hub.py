"""Whether the hub can be asked. Libraries try for half a minute before they say that it cannot."""

from __future__ import annotations

import os
import socket
import sys
import threading
from functools import cache
from urllib.parse import urlsplit

from luthier.core.log import logger

LOOK_SECONDS = 5.0
"""A name that is not found within this time counts as not to be found."""


@cache
def look_for_hub() -> bool:
    """Tell whether the hub's name can be found; where it cannot, let libraries use what was fetched before.

    Behind a proxy only the proxy finds names, so nothing is looked up. Asked once a process.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")) or _known(host):
        return True
    # Whoever was imported before keeps the switch in a variable of its own.
    for module in (constants, sys.modules.get("datasets.config")):
        if module is not None:
            module.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
    logger.warning("%s cannot be found from here: what was fetched before is used, nothing is downloaded", host)
    return False


def _known(host: str) -> bool:
    found: list[object] = []

    def look() -> None:
        try:
            found.extend(socket.getaddrinfo(host, 443))
        except OSError:
            return

    # A resolver that hangs cannot be told to stop: its thread is left behind.
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(LOOK_SECONDS)
    return bool(found)
