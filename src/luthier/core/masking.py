"""Secrets out of whatever is shown, written or sent: known by the name of a key, or by their shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

MASK = "***"

_WORDS = "token|secret|password|passwd|passphrase|authorization|credentials?|cookie"
_KEYED = "api|access|private|secret|signing|encryption|auth|account|license|licence|service|master|client|subscription"
_NAME = rf"(?:[A-Za-z0-9]{{1,40}}[_-]){{0,8}}?(?:(?:{_KEYED})[_-]?keys?|{_WORDS})(?:[_-](?:id|value|key|str|string))?"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_INNOCENT_NAMES = re.compile(
    r"(?:(?:bos|eos|eot|pad|unk|sep|cls|mask|image|stop|end|start|special|new|add|max|min|num|tool|audio|video|think|"
    r"first|last|next|skip|prompt|answer)[_-])+token(?:[_-](?:id|value|str|string))?",
    re.IGNORECASE,
)
"""Names of tokens that are pieces of text."""

_SHAPES = re.compile(
    r"""(?x)
    (?<![A-Za-z0-9_-])(?:
        hf_[A-Za-z0-9]{16,}
      | sk-(?:proj-|ant-|or-|svcacct-)?[A-Za-z0-9_-]{16,}
      | lk-[A-Za-z0-9_-]{16,}
      | (?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}
      | glpat-[A-Za-z0-9_-]{16,}
      | xox[abeoprs]-[A-Za-z0-9-]{10,}
      | (?:AKIA|ASIA)[A-Z0-9]{16}
      | AIza[A-Za-z0-9_-]{35}
      | pypi-[A-Za-z0-9_-]{20,}
      | npm_[A-Za-z0-9]{30,}
      | (?:rk|pk|sk)_(?:live|test)_[A-Za-z0-9]{16,}
      | r8_[A-Za-z0-9]{30,}
      | nvapi-[A-Za-z0-9_-]{20,}
      | gsk_[A-Za-z0-9]{20,}
      | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}
      | (?=[A-Za-z0-9+]*[0-9])(?=[A-Za-z0-9+]*[A-Z])(?=[A-Za-z0-9+]*[a-z])[A-Za-z0-9+]{40,}={0,2}
    )
    (?:\n(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{8,}(?=\n|\Z))?  # the rest of one that a terminal broke
    """
)
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_IN_ADDRESS = re.compile(r"(?<=://)([^\s/:@]*):([^\s/@]+)@")
_BEARER = re.compile(r"\b(Bearer|Basic)[ \t]+(?=[A-Za-z0-9._~+/-]*[0-9._~+/-])[A-Za-z0-9._~+/-]{8,}=*", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""(?<![A-Za-z0-9_-])-{{0,2}}["']?(?P<name>{_NAME})["']?[ \t]*(?:=|:)[ \t]*(?:\n[ \t]*(?=["']))?"""
    r"""(?P<value>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^\s"',;&}\])]+)""",
    re.IGNORECASE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EMPTY = {"", "null", "none", "true", "false", "~", "[", "{", MASK, "$", "bearer", "basic"}


def is_secret_name(name: str) -> bool:
    """Tell whether what stands under a name is not to be shown.

    >>> [is_secret_name(each) for each in ("hub_token", "api_key", "API-KEY", "eos_token", "tokens", "key")]
    [True, True, True, False, False, False]
    """
    return _SECRET_NAME.fullmatch(name) is not None and _INNOCENT_NAMES.fullmatch(name) is None


def mask_text(text: str) -> str:
    """Return a text without its secrets; a text that holds none comes back as it was.

    >>> mask_text("api_key: abc123 and rank: 16")
    'api_key: *** and rank: 16'
    """
    plain = _COLOUR.sub("", text)
    masked = _masked(plain)
    return text if masked == plain else masked


def _masked(text: str) -> str:
    text = _BLOCK.sub(lambda found: f"-----BEGIN {found[1]}-----{MASK}", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    text = _IN_ADDRESS.sub(rf"\1:{MASK}@", text)
    text = _ASSIGNED.sub(_assigned, text)
    return _SHAPES.sub(MASK, text)


def _assigned(found: re.Match[str]) -> str:
    value = found["value"].strip("\"'")
    innocent = (
        _INNOCENT_NAMES.fullmatch(found["name"]) or value.lower() in _EMPTY or value.lower() in ("bearer", "basic")
    )
    if innocent or _is_number(value) or _is_prose(found, value):
        return found[0]
    quote = found["value"][0] if found["value"][0] in "\"'" else ""
    return found[0][: found.start("value") - found.start()] + f"{quote}{MASK}{quote}"


def _is_prose(found: re.Match[str], value: str) -> bool:
    """Tell whether a sentence goes on behind a colon: "the wrong token: it is stale"."""
    before = found.string[max(0, found.start() - 2) : found.start()]
    return len(before) == 2 and before[0].isalpha() and before[1] == " " and value.isalpha() and len(value) < 12


def _is_number(text: str) -> bool:
    return len(text) < 8 and text.replace(".", "", 1).isdigit()


def mask(value: Any) -> Any:
    """Return plain data (mappings, lists, texts, numbers) without secrets, by the names of keys and by their shape."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        return {key: MASK if _hides(key, each) else mask(each) for key, each in pairs}
    if isinstance(value, (list, tuple)):
        return [mask(each) for each in cast("list[Any]", value)]
    return mask_text(value) if isinstance(value, str) else value


def _hides(key: Any, value: Any) -> bool:
    return isinstance(key, str) and is_secret_name(key) and isinstance(value, str) and value.lower() not in _EMPTY
