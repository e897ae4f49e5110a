"""Who is let in: a token in a file that only its owner reads, and sessions that outlive the server.

The printed address carries the token behind `#`, which browsers do not send; the page posts it once and gets a cookie.
A token is 256 random bits: nobody guesses it, so the right one is never kept waiting, whatever others try meanwhile.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import time
from collections import OrderedDict
from http.cookies import CookieError, SimpleCookie
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from luthier.core.errors import ConfigError
from luthier.core.log import logger
from luthier.core.paths import write_whole
from luthier.server.keys import hashed
from luthier.server.ui.failures import Refused
from luthier.server.ui.shapes.common import About, Ok, SignIn, Token

if TYPE_CHECKING:
    from luthier.server.ui.state import State

SESSION_SECONDS = 30 * 24 * 3600.0
MOST_SESSIONS = 100
LEAST_CHARACTERS = 22
"""A shorter token in a file of one's own could be guessed: 22 characters of base64 are 128 bits."""
MOST_ADDRESSES = 1000
LONGEST_WAIT_SECONDS = 2.0
MOST_WAITING = 50


def default_token_file() -> Path:
    """Return where the token is kept unless --token-file says otherwise."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "luthier" / "token"


class Sessions:
    """The token and who has shown it. Servers that share the file share both; it is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, path.with_name(f"{path.name}.sessions")
        self.cookie = f"luthier_{hashed(os.fspath(path.resolve()))[:8]}"
        """Name of the cookie; browsers share cookies between ports, so each token file has its own."""
        self._read_at: tuple[int, ...] = ()
        self._token = ""
        self._until: dict[str, float] = {}
        if not path.exists():
            self._write_token()
        self._refresh()

    @property
    def token(self) -> str:
        """Return what lets somebody in."""
        self._refresh()
        return self._token

    def is_token(self, shown: str) -> bool:
        """Tell whether this is the token; how long that takes tells nothing."""
        return hmac.compare_digest(hashed(shown), hashed(self.token))

    def start(self) -> str:
        """Return the value of a cookie for somebody who has shown the token."""
        self._refresh()
        value, now = secrets.token_urlsafe(32), time.time()
        living = sorted((until, name) for name, until in self._until.items() if until > now)
        self._until = {name: until for until, name in living[-(MOST_SESSIONS - 1) :]}
        self._until[self._key(value)] = now + SESSION_SECONDS
        self._write_sessions()
        return value

    def knows(self, cookie: str) -> bool:
        """Tell whether a cookie is of a session that lasts."""
        self._refresh()
        return self._until.get(self._key(cookie), 0.0) > time.time()

    def end(self, cookie: str) -> None:
        """Forget a session."""
        self._refresh()
        if self._until.pop(self._key(cookie), None) is not None:
            self._write_sessions()

    def rotate(self) -> str:
        """Return a fresh token; the old one and every session are stale from now on."""
        self._until = {}
        self._write_sessions()
        self._write_token()
        return self.token

    def cookie_of(self, header: str) -> str:
        """Return our cookie in a Cookie header, or an empty text."""
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found is not None else ""

    def _key(self, cookie: str) -> str:
        """Return the name of a session: of another token it is another one, whichever file or server still has it."""
        return hashed(f"{self._token} {cookie}")

    def _write_token(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_private(self._path, secrets.token_urlsafe(32) + "\n")

    def _write_sessions(self) -> None:
        try:
            _write_private(self._kept, json.dumps(self._until) + "\n")
            self._read_at = self._facts()
        except OSError as error:
            logger.warning("%s cannot be written (%s); sessions end with this server", self._kept, error.strerror)

    def _facts(self) -> tuple[int, ...]:
        found = [path.stat() if path.exists() else None for path in (self._path, self._kept)]
        return tuple(number for each in found for number in ((each.st_mtime_ns, each.st_ino) if each else (0, 0)))

    def _refresh(self) -> None:
        facts = self._facts()
        if facts == self._read_at:
            return
        self._token = _read_token(self._path)
        if self._kept.exists():
            self._until = _read_sessions(self._kept)
        self._read_at = facts


def _write_private(path: Path, text: str) -> None:
    before = os.umask(0o077)
    try:
        write_whole(path, text)
    finally:
        os.umask(before)


def _read_token(path: Path) -> str:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the token cannot be read ({error}); give another --token-file") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this token; say chmod 600 {path}, or give another --token-file")
    if len(text) < LEAST_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{path}: a token is one line of at least {LEAST_CHARACTERS} letters and digits; remove the file, and "
            "a token is made"
        )
    return text


def _read_sessions(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(until) for name, until in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class Slowness:
    """Makes whoever shows wrong tokens wait, longer each time, for each address; the table is bounded."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._waiting = 0

    async def after_failure(self, address: str) -> None:
        """Wait. Raises Refused (429) where too many wait already."""
        count = self._failures.pop(address, 0) + 1
        self._failures[address] = count
        while len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        if self._waiting >= MOST_WAITING:
            raise Refused(429, "too_many_failures", "too many wrong tokens; try again soon", headers=_LATER)
        self._waiting += 1
        try:
            await asyncio.sleep(min(LONGEST_WAIT_SECONDS, 0.05 * 2 ** min(count, 10)))
        finally:
            self._waiting -= 1

    def after_success(self, address: str) -> None:
        """Forget what went wrong before."""
        self._failures.pop(address, None)


_LATER = {"Retry-After": "2"}


def stale() -> Refused:
    """Return the reply to whoever is not let in."""
    said = "this token is not, or no longer, valid; open the address that `luthier ui` printed"
    return Refused(401, "token_stale", said, headers={"WWW-Authenticate": "Bearer"})


def routes(state: State) -> APIRouter:
    """Sign in and out, and change the token."""
    router, sessions, slowness = APIRouter(tags=["session"]), state.sessions, Slowness()

    def about(response: Response, *, fresh: bool) -> About:
        if fresh:
            response.set_cookie(
                sessions.cookie, sessions.start(), int(SESSION_SECONDS), path="/", httponly=True, samesite="strict"
            )
        return About(
            authenticated=True,
            version=version("luthier"),
            runs_root=str(state.roots.runs),
            data_roots=[str(each) for each in (state.roots.uploads, *state.roots.data)],
            model_roots=[str(each) for each in state.roots.of("models")],
            started=state.started,
            max_upload_bytes=state.max_upload_bytes,
            remote_code=state.allow_remote_code,
        )

    @router.get("/session", summary="Who asks, and what this server is")
    async def show(request: Request, response: Response) -> About:
        return about(response, fresh=False) if request.scope.get("luthier.in") else About(authenticated=False)

    @router.post("/session", summary="Show the token, get a cookie")
    async def sign_in(body: SignIn, request: Request, response: Response) -> About:
        address = request.client.host if request.client else ""
        if not sessions.is_token(body.token):
            await slowness.after_failure(address)
            raise stale()
        slowness.after_success(address)
        return about(response, fresh=True)

    @router.delete("/session", summary="Sign out")
    async def sign_out(request: Request, response: Response) -> Ok:
        sessions.end(sessions.cookie_of(request.headers.get("cookie", "")))
        response.delete_cookie(sessions.cookie, path="/", httponly=True, samesite="strict")
        return Ok()

    @router.post("/session/token", summary="Make a fresh token; the old one and all sessions are stale")
    async def rotate(response: Response) -> Token:
        token = sessions.rotate()
        about(response, fresh=True)
        return Token(token=token)

    return router
