"""Render the part of Go's text/template that our Modelfiles use, and put conversations into it as Ollama does.

Actions: fields, variables and their assignment, text and whole numbers, if / else if / else, range with index and
value, pipes, brackets, comments, trimmed blanks; the functions of `_FUNCTIONS`. Anything else raises `GoError`.
Ollama's way to call it is that of its template package (https://github.com/ollama/ollama, template/template.go).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luthier.core.types import Message

_ACTION = re.compile(
    r"\{\{(-(?=\s))?((?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|/\*.*?\*/|(?!\}\}).)*?)((?<=\s)-)?\}\}", re.DOTALL
)
_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:\\.|[^\"\\])*\"|`[^`]*`)|(?P<number>\d+)|(?P<variable>\$\w*)|(?P<field>\.\w*)"
    r"|(?P<word>\w+)|(?P<mark>:=|=|\(|\)|\||,))"
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


class GoError(Exception):
    """The template is none, or uses what is not known here."""


# ---- writing


def go_text(text: str) -> str:
    """Return `text` as it stands in a template inside a Modelfile.

    A Modelfile loses characters that cannot be printed and ends a value at three quotes, so those are spelled.

    >>> go_text("a {{b}}")
    '{{ "a {{b}}" }}'
    """
    plain = all(c.isprintable() or c in "\n\t" for c in text)
    if plain and "{{" not in text and '"""' not in text and not text.endswith("{"):
        return text
    return '{{ "' + "".join(map(_spelled, text)) + '" }}'


def _spelled(character: str) -> str:
    for letter, meaning in _ESCAPES.items():
        if character == meaning:
            return f"\\{letter}"
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


# ---- reading


@dataclass(slots=True)
class _Block:
    """Text and actions in a row; an `if` or `range` with what it governs."""

    kind: str = "root"
    words: list[tuple[str, str]] = field(default_factory=list)
    inside: list[str | _Block] = field(default_factory=list)
    other: list[str | _Block] = field(default_factory=list)


def _pieces(template: str) -> list[str | list[tuple[str, str]]]:
    """Return text and actions in turn; an action is its tokens."""
    found: list[str | list[tuple[str, str]]] = []
    place, trimmed = 0, False
    for match in _ACTION.finditer(template):
        text = template[place : match.start()]
        text = text.lstrip() if trimmed else text
        found.append(text.rstrip() if match[1] else text)
        place, trimmed = match.end(), bool(match[3])
        if not match[2].strip().startswith("/*"):
            found.append(_tokens(match[2]))
    rest = template[place:]
    if "{{" in rest:
        raise GoError(f"an action is not closed: {rest[rest.index('{{') :][:40]!r}")
    found.append(rest.lstrip() if trimmed else rest)
    return found


def _tokens(action: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    place, end = 0, len(action.rstrip())
    while place < end:
        match = _TOKEN.match(action, place)
        if match is None:
            raise GoError(f"cannot read {action[place:][:40]!r}")
        found.append((str(match.lastgroup), match[0].strip()))
        # A field that touches what stands before it belongs to it: (index .Messages 0).Role
        if found[-1][0] == "field" and found[1:] and not match[0][0].isspace() and found[-2][1] not in ("(", "|"):
            found[-1] = ("member", found[-1][1])
        place = match.end()
    return found


def _parsed(template: str) -> _Block:
    root = _Block()
    stack: list[tuple[_Block, list[str | _Block]]] = [(root, root.inside)]
    for piece in _pieces(template):
        if isinstance(piece, str):
            stack[-1][1].append(piece)
            continue
        word = piece[0][1] if piece and piece[0][0] == "word" else ""
        if word in ("if", "range"):
            block = _Block(word, piece[1:])
            stack[-1][1].append(block)
            stack.append((block, block.inside))
        elif word in ("else", "end") and len(stack) == 1:
            raise GoError(f"{word} has nothing to go with")
        elif word == "else":
            block = stack.pop()[0]
            if piece[1:]:  # else if: a block of its own, which the same end closes
                inner = _Block("chained", piece[2:])
                block.other.append(inner)
                stack += [(block, block.other), (inner, inner.inside)]
            else:
                stack.append((block, block.other))
        elif word == "end":
            while stack.pop()[0].kind == "chained":
                pass
        else:
            stack[-1][1].append(_Block("action", piece))
    if len(stack) != 1:
        raise GoError("an if or range has no end")
    return root


# ---- running


class _Run:
    """One rendering: what has been written, the variables, and what a dot means."""

    def __init__(self, data: Any) -> None:
        self.root, self.variables, self.out = data, {"$": data}, []

    def blocks(self, blocks: Sequence[str | _Block], dot: Any) -> None:
        for block in blocks:
            if isinstance(block, str):
                self.out.append(block)
            else:
                _KINDS[block.kind](self, block, dot)

    def action(self, block: _Block, dot: Any) -> None:
        words = block.words
        if len(words) > 2 and words[0][0] == "variable" and words[1][1] in (":=", "="):
            self.variables[words[0][1]] = _Reader(self, words[2:], dot).pipe()
            return
        self.out.append(_shown(_Reader(self, words, dot).pipe()))

    def branch(self, block: _Block, dot: Any) -> None:
        self.blocks(block.inside if _Reader(self, block.words, dot).pipe() else block.other, dot)

    def loop(self, block: _Block, dot: Any) -> None:
        words, names = block.words, []
        if (":=") in [text for _, text in words]:
            place = [text for _, text in words].index(":=")
            names, words = [text for kind, text in words[:place] if kind == "variable"], words[place + 1 :]
        values = _Reader(self, words, dot).pipe() or []
        for number, value in enumerate(values):
            self.variables.update(zip(names[-2:], [number, value][-len(names) :] if names else [], strict=False))
            self.blocks(block.inside, value)
        if not values:
            self.blocks(block.other, dot)


_KINDS: dict[str, Callable[[_Run, _Block, Any], None]] = {
    "action": _Run.action, "if": _Run.branch, "chained": _Run.branch, "range": _Run.loop,
}  # fmt: skip


class _Reader:
    """Reads and computes the tokens of one action."""

    def __init__(self, run: _Run, words: Sequence[tuple[str, str]], dot: Any) -> None:
        self.run, self.words, self.dot, self.place = run, words, dot, 0

    def pipe(self) -> Any:
        value = self._command([])
        while self._next("|"):
            value = self._command([value])
        if self.place < len(self.words) and self.words[self.place][1] != ")":
            raise GoError(f"cannot read {self.words[self.place][1]!r} here")
        return value

    def _next(self, mark: str) -> bool:
        found = self.place < len(self.words) and self.words[self.place] == ("mark", mark)
        self.place += found
        return found

    def _command(self, last: list[Any]) -> Any:
        if self.place >= len(self.words):
            raise GoError("an action has nothing in it")
        kind, text = self.words[self.place]
        if kind != "word" or text in _NAMES:
            return self._operand()
        if text not in _FUNCTIONS:
            raise GoError(f"function {text!r} is not known here")
        self.place += 1
        arguments: list[Any] = []
        while self.place < len(self.words) and self.words[self.place][1] not in ("|", ")"):
            arguments.append(self._operand())
        return _FUNCTIONS[text](*arguments, *last)

    def _operand(self) -> Any:
        kind, text = self.words[self.place]
        if self._next("("):
            value = self.pipe()
            if not self._next(")"):
                raise GoError("a bracket is not closed")
        else:
            self.place += 1
            value = self._value(kind, text)
        while self.place < len(self.words) and self.words[self.place][0] == "member":
            value = _field(value, self.words[self.place][1][1:])
            self.place += 1
        return value

    def _value(self, kind: str, text: str) -> Any:
        if kind == "text":
            return text[1:-1] if text[0] == "`" else _unspelled(text[1:-1])
        if kind == "number":
            return int(text)
        if kind == "field":
            return self.dot if text == "." else _field(self.dot, text[1:])
        if kind == "variable" and text in self.run.variables:
            return self.run.variables[text]
        if kind == "word" and text in _NAMES:
            return _NAMES[text]
        raise GoError(f"{text!r} is not known here")


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise GoError(f"{name!r} is asked of a {type(value).__name__}")
    return value.get(name, "")


def _unspelled(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        return chr(int(match[1] or match[2], 16)) if match[1] or match[2] else _ESCAPES[match[3]]

    return re.sub(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", one, text)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


_NAMES: dict[str, Any] = {"true": True, "false": False, "nil": None}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *rest: any(first == value for value in rest),
    "ne": lambda one, other: one != other,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "len": len,
    "slice": lambda value, start=0, end=None: value[start:end],
    "index": lambda value, *keys: value[keys[0]] if len(keys) == 1 else value[keys[0]][keys[1]],
    "json": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
}


def render_go(template: str, data: dict[str, Any]) -> str:
    """Return what Go's text/template makes of `template`. Raises GoError for what is not known here."""
    run = _Run(data)
    try:
        run.blocks(_parsed(template).inside, data)
    except (TypeError, IndexError, KeyError) as error:
        raise GoError(f"cannot be computed: {error}") from error
    return "".join(run.out)


def ollama_prompt(template: str, messages: Sequence[Message], *, think: bool | None = None) -> str:
    """Return the text that Ollama gives a model for a conversation; `think`: what the user asked for, if anything.

    Turns of the same role in a row become one; `.System` is all system texts, which are turns, too.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        if turns and turns[-1]["Role"] == message.role != "tool":
            turns[-1]["Content"] += "\n\n" + message.content
        else:
            turns.append({"Role": message.role, "Content": message.content, "Thinking": message.reasoning})
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    data = {"System": system, "Messages": turns, "Tools": [], "Response": "", "Think": bool(think),
            "IsThinkSet": think is not None}  # fmt: skip
    return render_go(template, data)
