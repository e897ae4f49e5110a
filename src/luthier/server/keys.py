"""Keys that let clients in: named, revocable, and only their hashes are kept.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from typing import TYPE_CHECKING

from luthier.core.errors import ConfigError
from luthier.core.paths import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def hashed(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> dict[str, str]:
    """Return name -> hash of a file of keys; none where there is no file. Raises ConfigError when it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["keys"]
        if all(re.fullmatch("[0-9a-f]{64}", each) for each in found.values()):
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ConfigError(f"{path} is no file of keys; make one with: luthier keys add NAME --file FILE")


def _write(path: Path, keys: Mapping[str, str]) -> None:
    write_whole(path, json.dumps({"keys": dict(keys)}, indent=1) + "\n")
    path.chmod(0o600)


def add_key(path: Path, name: str) -> str:
    """Make a key called `name` and return it; the file keeps its hash. Raises ConfigError for a name in use."""
    keys = read_keys(path)
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"a key's name has letters, digits, dots and dashes; found {name!r}")
    if name in keys:
        raise ConfigError(f"{path} has a key called {name} already; remove it first, or take another name")
    secret = f"lk-{secrets.token_urlsafe(32)}"
    _write(path, {**keys, name: hashed(secret)})
    return secret


def remove_key(path: Path, name: str) -> None:
    """Revoke the key called `name`; running servers refuse it from their next request on."""
    keys = read_keys(path)
    if name not in keys:
        raise ConfigError(f"{path} has no key called {name}; there are: {', '.join(keys) or 'none'}")
    _write(path, {each: value for each, value in keys.items() if each != name})


class Keys:
    """Whom a server lets in. The file is read again when it changes."""

    def __init__(self, given: Sequence[str] = (), path: Path | None = None) -> None:
        self._given = {f"key{number}": hashed(secret) for number, secret in enumerate(given, 1)}
        self._path, self._read_at = path, (0, 0)
        self._of_file: dict[str, str] = {}
        self._refresh()

    @property
    def required(self) -> bool:
        """Tell whether clients must show a key."""
        return bool(self._given) or self._path is not None

    def owner(self, secret: str) -> str | None:
        """Return the name of a key, or None. Every key is compared, so that time tells nothing."""
        self._refresh()
        shown, found = hashed(secret), None
        for name, known in {**self._of_file, **self._given}.items():
            if hmac.compare_digest(shown, known):
                found = name
        return found

    def _refresh(self) -> None:
        if self._path is None:
            return
        facts = self._path.stat() if self._path.exists() else None
        now = (facts.st_mtime_ns, facts.st_ino) if facts else (0, 0)
        if now != self._read_at:
            self._of_file, self._read_at = read_keys(self._path), now
