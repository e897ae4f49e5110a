"""A grammar that lets a model write nothing but calls of tools, in llguidance's form of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.data.chat_format import ToolFormat

MOST_CALLS = 8
THOUGHT = "thought[lazy]: /(.|\\n)*<\\/think>\\s*/"
"""A thought that the prompt has opened, up to its end."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass
class CallGrammar:
    """Writes the rules."""

    form: ToolFormat
    special: Mapping[str, int]
    """Text -> id of tokens that have no text of their own in a grammar."""
    rules: list[str] = field(default_factory=list[str])

    def text(self, tools: Mapping[str, Mapping[str, Any]], *, many: bool, opened: bool) -> str:
        """Return the grammar of one call of these tools, or up to MOST_CALLS; behind a thought where one is open."""
        names = [self._call(number, name, schema) for number, (name, schema) in enumerate(tools.items())]
        form, call = self.form, f"({' | '.join(names)})"
        one = self._row(form.open, call, form.close)
        start = one
        if many:
            more = f"({self._row(form.join, call, '')}){{1,{MOST_CALLS - 1}}}"
            front, end = (form.open_many or form.open), (form.close_many or form.close)
            start = f"{one} | {self._row(front, call + ' ' + more, end)}"
        thought = [THOUGHT] if opened else []
        lead = "thought " if opened else ""
        return "\n".join([f"start: {lead}({start})", *thought, *self.rules]) + "\n"

    def _row(self, front: str, middle: str, end: str) -> str:
        return " ".join(part for part in (self._literal(front), middle, self._literal(end)) if part)

    def _literal(self, text: str) -> str:
        """Return text with its special tokens by their numbers."""
        if not self.special:
            return json.dumps(text) if text else ""
        parts = re.split("(" + "|".join(map(re.escape, self.special)) + ")", text)
        return " ".join(f"<[{self.special[p]}]>" if p in self.special else json.dumps(p) for p in parts if p)

    def _call(self, number: int, name: str, schema: Mapping[str, Any]) -> str:
        head, behind = self.form.call.split("{name}")
        between, tail = behind.split("{arguments}")
        inside = self._one_by_one(number, schema) if self.form.argument else self._json(f"args_{number}", schema)
        self.rules.append(f"call_{number}: {self._row(head + name + between, inside, tail)}")
        return f"call_{number}"

    def _json(self, name: str, schema: Any) -> str:
        self.rules.append(f"{name}: %json {json.dumps(schema or _ANY_OBJECT)}")
        return name

    def _one_by_one(self, number: int, schema: Mapping[str, Any]) -> str:
        """Return arguments that are written each for itself: those that are required, then the others."""
        properties: Mapping[str, Any] = schema.get("properties") or {}
        required = [key for key in schema.get("required") or [] if key in properties]
        others = [key for key in properties if key not in required]
        defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        each = {
            key: self._argument(f"arg_{number}_{place}", key, properties[key], defs)
            for place, key in enumerate([*required, *others])
        }
        join = self._literal(self.form.argument_join)
        row = f" {join} ".join(each[key] for key in required)
        if required or not join:
            return " ".join([row, *(f"({join} {each[key]})?" for key in others)])
        return f"({' | '.join(each[key] for key in others)})?" if others else ""

    def _argument(self, name: str, key: str, schema: Any, defs: Mapping[str, Any]) -> str:
        before, behind = self.form.argument.split("{key}")
        slot = "{json}" if "{json}" in behind else "{value}"
        middle, after = behind.split(slot)
        whole = {**schema, **defs} if isinstance(schema, Mapping) else schema
        if slot == "{value}" and isinstance(schema, Mapping) and schema.get("type") == "string":
            # One terminal with what follows: alone it would take the blanks in front of that.
            value, after = self._bare(f"{name}_value", schema.get("enum"), after), ""
        else:
            value = self._json(f"{name}_value", whole)
        self.rules.append(f"{name}: {self._row(before + key + middle, value, after)}")
        return name

    def _bare(self, name: str, choices: Any, after: str) -> str:
        texts = "|".join(_pattern(str(each)) for each in choices) if choices else "[^<]+"
        self.rules.append(f"{name}: /({texts}){_pattern(after)}/")
        return name


def _pattern(text: str) -> str:
    return re.sub(r"[.^$*+?{}\[\]\\|()/]", r"\\\g<0>", text).replace("\n", "\\n")
