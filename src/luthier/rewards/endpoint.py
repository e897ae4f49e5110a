"""One question to a model behind the usual HTTP interface (POST /chat/completions), within bounded time and memory."""

from __future__ import annotations

import json
import os
import time
from typing import Any

LARGEST_REPLY = 1 << 20


def ask(base_url: str, model: str, text: str, *, key_variable: str, max_tokens: int, seconds: float) -> str:
    """Return the reply to `text`, drawn at temperature 0. `key_variable`: environment variable with the key, or empty.

    Raises ValueError for a reply that is none, OSError and TimeoutError where the endpoint does not answer in time. A
    failed request is not repeated.
    """
    import urllib.error
    import urllib.request

    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json"}
    if key_variable:
        headers["Authorization"] = f"Bearer {os.environ.get(key_variable, '')}"
    url = base_url.rstrip("/") + "/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    opener = urllib.request.build_opener(_no_redirects())
    try:
        with opener.open(request, timeout=seconds) as reply:
            data = _read(reply, time.monotonic() + seconds)
    except urllib.error.HTTPError as error:
        shown = error.read(300).decode(errors="replace")
        raise ValueError(f"{url} answers {error.code}: {' '.join(shown.split())}") from None
    try:
        return str(json.loads(data)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(f"{url} answers something else than a chat completion: {data[:200]!r}") from None


def _read(reply: Any, deadline: float) -> bytes:
    data = b""
    while more := reply.read1(1 << 16):
        data += more
        if len(data) > LARGEST_REPLY:
            raise ValueError("the judge's reply is too large")
        if time.monotonic() > deadline:
            raise TimeoutError("the judge's reply took too long")
    return data


def _no_redirects() -> Any:
    """Return a handler that follows no redirect: the key is for the address in the settings alone."""
    from urllib.request import HTTPRedirectHandler

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    return Stay()
