"""Text of a model -> calls of tools, in the form that its family writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from luthier.data.chat_format import ToolFormat
from luthier.server.speech import Call

_READER = json.JSONDecoder()
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY = re.compile(r"[^<>\"'=\s,()]{1,128}")
_OBJECT = re.compile(r'\{\s*"name":\s*"$')
_ARGUMENTS = ("arguments", "parameters")


class _NoCall(Exception):
    """What stands here is no call."""


@dataclass(frozen=True)
class CallReader:
    """Reads calls of these tools."""

    form: ToolFormat
    tools: Mapping[str, Mapping[str, Any]]
    """Name -> JSON schema of its arguments."""

    @cached_property
    def head(self) -> str:
        """Return what stands in front of the name of a call, up to the object where a call is a JSON object."""
        return _OBJECT.sub("", self.form.call.split("{name}")[0])

    @cached_property
    def is_object(self) -> bool:
        """Tell whether a call is a JSON object with name and arguments."""
        return _OBJECT.search(self.form.call.split("{name}")[0]) is not None

    @cached_property
    def marker(self) -> str:
        """Return the text by which calls are noticed; "" where they can only be noticed at the start of an answer."""
        return next(iter((self.form.open or self.head).split()), "")

    def begins(self, text: str) -> bool | None:
        """Tell whether an answer that begins with `text` is calls; None while it may still become one."""
        openings = ["{", "["] if self.is_object else list(self.tools)
        if any(text.startswith(each) for each in openings):
            return True
        return None if any(each.startswith(text) for each in openings) else False

    def read(self, text: str) -> tuple[list[Call], str]:
        """Return the calls at the start of `text` and what stands behind them."""
        calls: list[Call] = []
        place = self._skip(self.form.open, text, 0)
        many = self._skip(self.form.open_many, text, place) if self.form.open_many else place
        try:
            call, place = self._call(text, many)
            calls.append(call)
            while True:
                call, place = self._call(text, self._skip(self.form.join, text, place))
                calls.append(call)
        except _NoCall:
            pass
        if not calls:
            return [], text
        for end in (self.form.close_many, self.form.close):
            place = self._skip(end, text, place)
        return calls, text[place:].strip()

    def _skip(self, literal: str | None, text: str, place: int) -> int:
        """Return the place behind a literal, if it stands here; blanks may differ."""
        found = re.compile(_loose(literal or "")).match(text, place)
        return found.end() if found else place

    def _expect(self, literal: str, text: str, place: int) -> int:
        found = re.compile(_loose(literal)).match(text, place)
        if found is None:
            raise _NoCall
        return found.end()

    def _call(self, text: str, place: int) -> tuple[Call, int]:
        place = self._expect(self.head, text, place)
        _, behind = self.form.call.split("{name}")
        between, tail = behind.split("{arguments}")
        if self.is_object:
            found, place = _json(text, place)
            call = _of_object(found)
            return call, self._skip(tail.removeprefix("}"), text, place)
        named = _NAME.match(text, place)
        if named is None:
            raise _NoCall
        place = self._expect(between, text, named.end())
        if self.form.argument:
            arguments, place = self._one_by_one(named[0], text, place)
        else:
            arguments, place = _json(text, place)
        if not isinstance(arguments, dict):
            raise _NoCall
        return Call(named[0], _spelled(arguments)), self._skip(tail, text, place)

    def _one_by_one(self, name: str, text: str, place: int) -> tuple[dict[str, Any], int]:
        """Read arguments that are written each for itself."""
        before, behind = self.form.argument.split("{key}")
        slot = "{json}" if "{json}" in behind else "{value}"
        middle, after = behind.split(slot)
        found: dict[str, Any] = {}
        while True:
            start = self._skip(self.form.argument_join, text, place) if found else place
            try:
                key = _KEY.match(text, self._expect(before, text, start))
                if key is None:
                    return found, place
                start = self._expect(middle, text, key.end())
                if slot == "{json}":
                    found[key[0]], place = _json(text, start)
                    continue
                value = re.compile("(.*?)" + _loose(after), re.DOTALL).match(text, start)
                if value is None:
                    return found, place
            except _NoCall:
                return found, place
            found[key[0]], place = self._value(name, key[0], value[1].strip("\n")), value.end()

    def _value(self, name: str, key: str, text: str) -> Any:
        """Return a bare value as its schema types it."""
        properties = self.tools.get(name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        if isinstance(schema, Mapping) and schema.get("type") == "string":
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


def _loose(literal: str) -> str:
    """Return a pattern for a literal in which blanks may differ."""
    return r"\s*" + r"\s*".join(map(re.escape, literal.split())) + (r"\s*" if literal.split() else "")


def _json(text: str, place: int) -> tuple[Any, int]:
    try:
        return _READER.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        raise _NoCall from error


def _of_object(found: Any) -> Call:
    name = found.get("name") if isinstance(found, dict) else None
    arguments = next((found[key] for key in _ARGUMENTS if key in found), {}) if isinstance(found, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict) or not _NAME.fullmatch(name):
        raise _NoCall
    return Call(name, _spelled(arguments))


def _spelled(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)
