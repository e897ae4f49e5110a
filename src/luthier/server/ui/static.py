"""The page itself: the files of one folder, read once, so that nothing else can be asked for."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import Response

from luthier.core.log import printable
from luthier.server.ui.failures import Refused, of_error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

PAGE = Path(__file__).parents[1] / "static"
INDEX = "index.html"
ASSETS = "assets/"
"""Below it names contain a hash of what they hold, so browsers may keep them for ever."""
SCREENS = frozenset({"start", "runs", "run", "compare", "data", "evaluate", "chat", "export", "queue", "settings"})
"""First parts of the addresses of the page (web/src/screens.ts); what follows one may be a name with a dot in it."""
_ENCODINGS = {".br": "br", ".gz": "gzip"}
"""Best first."""
_KINDS = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}


_COMPRESSED = {"text/javascript", "text/css", "text/html"}


@dataclass(slots=True)
class _File:
    kind: str
    bodies: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Encoding -> bytes; "" is without one."""
    tag: str = ""


class Static:
    """Answers whatever no route of the interface takes."""

    def __init__(self, folder: Path) -> None:
        self._files = _read(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with a file, or with the page for every address that the page itself knows."""
        if scope["type"] == "http":
            await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        path, method = scope["path"].lstrip("/"), scope["method"]
        if path == "api" or path.startswith("api/"):
            said = f"there is nothing at {printable(scope['path'])}; /api/openapi.json lists what is there"
            return of_error(Refused(404, "http_404", said))
        if method not in ("GET", "HEAD"):
            said = f"{printable(scope['path'])} does not take {printable(method)}"
            return of_error(Refused(405, "http_405", said, headers={"Allow": "GET, HEAD"}))
        found = self._files.get(path or INDEX)
        if found is None and _is_of_the_page(path):
            found = self._files.get(INDEX)
            if found is None:
                said = "the page is not built; `make web` builds it, and the interface below /api works without it"
                return of_error(Refused(503, "page_missing", said))
        if found is None:
            return of_error(Refused(404, "http_404", f"there is no {printable(scope['path'])} here"))
        return _reply(found, Headers(scope=scope), forever=path.startswith(ASSETS), body=method == "GET")


def _is_of_the_page(path: str) -> bool:
    screen, inside, _ = path.partition("/")
    if inside and screen in SCREENS:
        return True
    return not path.startswith(ASSETS) and "." not in path.rpartition("/")[2]


def _reply(file: _File, asked: Headers, *, forever: bool, body: bool) -> Response:
    taken = _accepted(asked.get("accept-encoding", ""))
    encoding = next((each for each in _ENCODINGS.values() if each in taken and each in file.bodies), "")
    tag = f'"{file.tag}{encoding}"'
    headers = {
        "cache-control": "public, max-age=31536000, immutable" if forever else "no-cache",
        "etag": tag,
        "vary": "Accept-Encoding",
    }
    if encoding:
        headers["content-encoding"] = encoding
    if tag in [each.strip().removeprefix("W/") for each in asked.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    content = file.bodies[encoding]
    headers["content-length"] = str(len(content))
    return Response(content if body else b"", 200, headers, file.kind)


def _accepted(header: str) -> set[str]:
    """Return the encodings that a client takes.

    >>> sorted(_accepted("gzip, br;q=0, zstd;q=0.5"))
    ['gzip', 'zstd']
    """
    found: set[str] = set()
    for each in header.lower().split(","):
        name, _, quality = each.strip().partition(";")
        if name and quality.replace(" ", "").rstrip("0.") != "q=":
            found.add(name.strip())
    return found


def _read(folder: Path) -> dict[str, _File]:
    """Return path -> file, with the compressed forms that lie beside a file as forms of it, and one of gzip."""
    files: dict[str, _File] = {}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    for path in paths:
        if path.suffix not in _ENCODINGS:
            content = path.read_bytes()
            kind = _KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            tag = hashlib.sha256(content).hexdigest()[:24]
            files[path.relative_to(folder).as_posix()] = _File(kind, {"": content}, tag)
    for path in paths:
        plain = files.get(path.relative_to(folder).with_suffix("").as_posix())
        if path.suffix in _ENCODINGS and plain is not None:
            plain.bodies[_ENCODINGS[path.suffix]] = path.read_bytes()
    for plain in files.values():
        if plain.kind in _COMPRESSED:
            plain.bodies.setdefault("gzip", gzip.compress(plain.bodies[""], mtime=0))
    return files
