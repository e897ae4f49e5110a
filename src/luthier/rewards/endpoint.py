"""Questions over HTTP within bounded time and memory: of any address (POST), of a model (POST /chat/completions)."""

from __future__ import annotations

import json
import os
import time
from typing import Any

LARGEST_REPLY = 1 << 20


def ask(base_url: str, model: str, text: str, *, key_variable: str, max_tokens: int, seconds: float) -> str:
    """Return the reply to `text`, drawn at temperature 0; otherwise as `post`, to the address of chat completions."""
    url = base_url.rstrip("/") + "/chat/completions"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    reply = post(url, body, key_variable=key_variable, seconds=seconds)
    try:
        return str(reply["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{url} answers something else than a chat completion: {str(reply)[:200]!r}") from None


def post(url: str, body: dict[str, Any], *, key_variable: str, seconds: float) -> Any:
    """Return the JSON that `url` answers to `body`. `key_variable`: environment variable with the key, or empty.

    Raises ValueError for a reply that is none, OSError and TimeoutError where the endpoint does not answer in time. A
    failed request is not repeated, and no redirect is followed.
    """
    import urllib.error
    import urllib.request

    headers = {"Content-Type": "application/json"}
    if key_variable:
        headers["Authorization"] = f"Bearer {os.environ.get(key_variable, '')}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    opener = urllib.request.build_opener(_no_redirects())
    try:
        with opener.open(request, timeout=seconds) as reply:
            data = _read(reply, time.monotonic() + seconds)
    except urllib.error.HTTPError as error:
        shown = error.read(300).decode(errors="replace")
        raise ValueError(f"{url} answers {error.code}: {' '.join(shown.split())}") from None
    try:
        return json.loads(data)
    except ValueError:
        raise ValueError(f"{url} answers something else than JSON: {data[:200]!r}") from None


def _read(reply: Any, deadline: float) -> bytes:
    data = b""
    while more := reply.read1(1 << 16):
        data += more
        if len(data) > LARGEST_REPLY:
            raise ValueError("the reply is too large")
        if time.monotonic() > deadline:
            raise TimeoutError("the reply took too long")
    return data


def _no_redirects() -> Any:
    """Return a handler that follows no redirect: the key is for the address in the settings alone."""
    from urllib.request import HTTPRedirectHandler

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    return Stay()
