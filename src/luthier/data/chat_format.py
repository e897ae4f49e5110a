"""A chat format as facts, and the jinja chat template that is made of them.

Most families differ in a dozen strings only. The skeleton here is written once; what a tokenizer gets, keeps in its
files and takes elsewhere is an ordinary template with those strings in their places.

Slots in the strings: {text}, {bos}, {eos}, {round}; in those about tools {tool}, {function}, {name}, {description},
{parameters}, {arguments}, {key}, {value}. Any other brace stands for itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

THINK = ("<think>", "</think>")
"""How thoughts are marked in data, whatever the family writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a family describes tools and calls them."""

    name: str
    call: str
    """One call: {name} and {arguments}."""
    argument: str = ""
    """One argument, {key} and {value} or {json}; empty: all of them as one JSON object."""
    argument_join: str = ""
    open: str = ""
    join: str = "\n"
    close: str = ""
    open_many: str | None = None
    """Before several calls, where that differs from one; likewise `close_many`."""
    close_many: str | None = None
    lead: str = "\n"
    """Between text and the calls that follow it."""
    intro: str = ""
    each: str = "{tool}"
    between: str = "\n"
    outro: str = ""
    gap: str = "\n\n"
    """Between the system text and the description."""
    place: Literal["system", "front", "turn", "query"] = "system"
    """Where the description stands: at the end of the system text, in front of it, as a system turn of its own in front
    of it, or before the last user turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """What a family writes around the turns of a conversation."""

    family: str
    user: str
    ask: str = ""
    """What asks for an answer."""
    answer: str = "{text}"
    end: str = "{eos}"
    """What ends an answer."""
    last_end: str | None = None
    """What ends the last answer, where earlier ones end otherwise; `call_end` if it calls tools."""
    call_end: str | None = None
    prefix: str = ""
    system: str = "{text}"
    system_in_user: bool = False
    """The system text stands inside the first user turn."""
    default_system: str = ""
    results: tuple[str, str, str] | None = None
    """Before the results of tools, each of them, after them; none: each is a user turn."""
    results_join: str = ""
    ask_after_results: str | None = None
    """What asks for an answer to results, where that differs."""
    tools: ToolFormat | None = None
    thought: tuple[str, str] | None = None
    """What stands around a thought."""
    empty_thought: str | None = None
    """An empty thought, where that is not `thought` around nothing."""
    past_thought: str = ""
    """What stands in earlier answers where their thoughts were."""
    thought_off: str = ""
    """Added to user turns when thinking is off."""
    writes_empty_thought: bool = True
    """An answer without thought gets an empty one unless the settings say otherwise."""
    trim: Literal["", "turns", "all"] = ""
    """Whether blanks around turns, or also around the system text, are removed."""
    needs: tuple[str, ...] = ()
    """Special tokens that the tokenizer must have."""
    text_end: str = ""
    """The special token that ends a plain text, where that is not the tokenizer's end."""
    jinja: str = ""
    """File on the shelf with a template written by hand; the strings here are unused then."""

    @property
    def stop(self) -> str | None:
        """The special token that ends every answer; None where that is the tokenizer's own end, or the next turn."""
        found = (token for token in self.needs if token in self.end)
        return next(found, None)


_VARIABLES = {
    "text": "text",
    "bos": "bos_token",
    "eos": "eos_token",
    "round": "ns.round",
    "tool": "tool | tojson",
    "function": "tool['function'] | tojson",
    "name": "call['name']",
    "arguments": "(call['arguments'] if call['arguments'] is string else call['arguments'] | tojson)",
    "key": "key",
    "value": "(value if value is string else value | tojson)",
    "json": "value | tojson",
}
_OF_TOOL = {
    "name": "tool['function']['name']",
    "description": "(tool['function']['description'] or '')",
    "parameters": "(tool['function']['parameters'] or {}) | tojson",
    "function_indented": "tool['function'] | tojson(indent=4)",
    "tool_indented": "tool | tojson(indent=4)",
}
_SLOT = re.compile(r"\{(" + "|".join({*_VARIABLES, *_OF_TOOL}) + r")\}")
_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n"})


def _expression(template: str, /, **variables: str) -> str:
    """Return `template` as a jinja expression.

    >>> _expression("<user>{text}\\n")
    "'<user>' ~ text ~ '\\\\n'"
    """
    known = {**_VARIABLES, **variables}
    parts = _SLOT.split(template)
    pieces = [f"({known[p]})" if "|" in known[p] else known[p] for p in parts[1::2]]
    literals = [f"'{p.translate(_ESCAPES)}'" if p else "" for p in parts[::2]]
    merged = [x for pair in zip(literals, [*pieces, ""], strict=True) for x in pair if x]
    return " ~ ".join(merged) or "''"


def _say(template: str, /, **variables: str) -> str:
    return f"{{{{- {_expression(template, **variables)} -}}}}" if template else ""


def _if(condition: str, then: str, otherwise: str = "") -> str:
    if not then and not otherwise:
        return ""
    middle = f"{{%- else -%}}{otherwise}" if otherwise else ""
    return f"{{%- if {condition} -%}}{then}{middle}{{%- endif -%}}"


def jinja_of(form: ChatFormat) -> str:
    """Return the chat template of a format.

    It reads `enable_thinking` (True: an empty thought is part of answers without one; False: of the prompt; None: there
    is none) and `preserve_thinking` (earlier thoughts stay) where the family thinks.
    """
    lines = [f"{{#- needs: {' '.join(form.needs)} #}}"] if form.needs else []
    lines += _head(form)
    lines += [
        _say(form.prefix),
        _described_turn(form),
        "" if form.system_in_user else _if("ns.system", "{%- set text = ns.system -%}" + _say(form.system)),
        "{%- for message in messages -%}",
        _text_of(form),
        "{%- if message['role'] == 'user' -%}",
        *_user(form),
        "{%- elif message['role'] == 'tool' -%}",
        *_results(form),
        "{%- elif message['role'] == 'assistant' -%}",
        *_answer(form),
        "{%- elif not loop.first -%}",
        _say(form.user if form.system_in_user else form.system),
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        _ask(form, "messages[-1]['role'] == 'tool'"),
        _if("enable_thinking is defined and enable_thinking is false", _say(_empty(form))) if form.thought else "",
        "{%- endif -%}",
    ]
    return "\n".join(line for line in lines if line)


def _head(form: ChatFormat) -> list[str]:
    trim = " | trim" if form.trim == "all" else ""
    lines = [
        f"{{%- set ns = namespace(system={_expression(form.default_system)}, query=-1, round=0) -%}}",
        _if("messages[0]['role'] == 'system'", f"{{%- set ns.system = messages[0]['content']{trim} -%}}"),
        "{%- for message in messages -%}",
        _if("message['role'] == 'user'", "{%- set ns.query = loop.index0 -%}"),
        "{%- endfor -%}",
    ]
    if form.thought:
        default = str(form.writes_empty_thought).lower()
        asked = f"(enable_thinking is not none) if (enable_thinking is defined) else {default}"
        lines.append(f"{{%- set empty_thought = {asked} -%}}")
    tools = form.tools
    if tools is None:
        return lines
    lines += [
        "{%- if tools -%}",
        "{%- set described -%}",
        _say(tools.intro),
        "{%- for tool in tools -%}",
        _say(tools.each, **_OF_TOOL),
        _if("not loop.last", _say(tools.between)),
        "{%- endfor -%}",
        _say(tools.outro),
        "{%- endset -%}",
    ]
    if tools.place == "system":
        gap = _expression(tools.gap)
        lines.append(f"{{%- set ns.system = ns.system ~ ({gap} if ns.system else '') ~ described -%}}")
    if tools.place == "front":
        gap = _expression(tools.gap)
        lines.append(f"{{%- set ns.system = described ~ ({gap} ~ ns.system if ns.system else '') -%}}")
    return [*lines, "{%- endif -%}"]


def _described_turn(form: ChatFormat) -> str:
    in_turn = form.tools is not None and form.tools.place == "turn"
    return _if("tools", "{%- set text = described -%}" + _say(form.system)) if in_turn else ""


def _text_of(form: ChatFormat) -> str:
    trim = " | trim" if form.trim else ""
    return f"{{%- set text = (message['content'] or ''){trim} -%}}{{%- set last = loop.last -%}}"


def _user(form: ChatFormat) -> list[str]:
    lines = [_next_round(form)]
    if form.thought_off:
        off = _expression(form.thought_off)
        condition = f"enable_thinking is defined and enable_thinking is false and not text.endswith({off})"
        lines.append(_if(condition, f"{{%- set text = text ~ {off} -%}}"))
    if form.system_in_user:
        joined = _expression(form.system, text="ns.system") + " ~ text"
        lines.append(_if("ns.system", f"{{%- set text = {joined} -%}}{{%- set ns.system = '' -%}}"))
    if form.tools is not None and form.tools.place == "query":
        lines.append(_if("tools and loop.index0 == ns.query", "{{- described -}}"))
    return [*lines, _say(form.user)]


def _next_round(form: ChatFormat) -> str:
    return "{%- set ns.round = ns.round + 1 -%}" if "{round}" in form.user else ""


def _results(form: ChatFormat) -> list[str]:
    if form.results is None:
        return [_next_round(form), _say(form.user)]
    before, each, after = form.results
    return [
        _if("loop.first or messages[loop.index0 - 1]['role'] != 'tool'", _say(before), _say(form.results_join)),
        _say(each),
        _if("last or messages[loop.index0 + 1]['role'] != 'tool'", _say(after)),
    ]


def _ask(form: ChatFormat, after_results: str) -> str:
    if form.ask_after_results is None:
        return _say(form.ask)
    return _if(f"not ({after_results})", _say(form.ask), _say(form.ask_after_results))


def _empty(form: ChatFormat) -> str:
    assert form.thought is not None
    return "".join(form.thought) if form.empty_thought is None else form.empty_thought


def _answer(form: ChatFormat) -> list[str]:
    lines = [_ask(form, "not loop.first and messages[loop.index0 - 1]['role'] == 'tool'")]
    if form.thought:
        lines += _thought(form, form.thought)
    said = _say(form.answer)
    if form.tools is None:
        lines.append(said)
    else:
        lines.append(_if("text or not message['tool_calls']", said))
        lines += ["{%- if message['tool_calls'] -%}", *_calls(form.tools), "{%- endif -%}"]
    return [*lines, _end(form)]


def _thought(form: ChatFormat, around: tuple[str, str]) -> list[str]:
    """Take a thought from its field or from the text, and write it where the family does."""
    lines = ["{%- set thought = message['reasoning_content'] or '' -%}"]
    own = (around[0].strip(), around[1].strip())
    for opening, closing in dict.fromkeys((THINK, own)):
        opened, closed = _expression(opening), _expression(closing)
        parts = f"{{%- set thought = text.split({closed})[0].split({opened})[-1] -%}}"
        rest = f"{{%- set text = text.split({closed})[-1].lstrip('\\n') -%}}"
        lines.append(_if(f"not thought and {closed} in text", parts + rest))
    lines += [
        "{%- set thought = thought.strip('\\n') -%}",
        "{%- if thought and (loop.index0 > ns.query or preserve_thinking) -%}",
        _say(around[0] + "{text}" + around[1], text="thought"),
        "{%- set text = text.lstrip('\\n') -%}",
        "{%- elif last and empty_thought -%}",
        _say(_empty(form)),
        "{%- set text = text.lstrip('\\n') -%}",
    ]
    if form.past_thought:
        lines += ["{%- elif empty_thought -%}", _say(form.past_thought)]
    return [*lines, "{%- endif -%}"]


def _calls(tools: ToolFormat) -> list[str]:
    opening, closing = (
        _say(one) if many is None else _if("message['tool_calls'] | length > 1", _say(many), _say(one))
        for one, many in ((tools.open, tools.open_many), (tools.close, tools.close_many))
    )
    lines = [
        _if("text", _say(tools.lead)),
        opening,
        "{%- for item in message['tool_calls'] -%}",
        "{%- set call = item['function'] or item -%}",
        _if("not loop.first", _say(tools.join)),
    ]
    if tools.argument:
        before, after = tools.call.split("{arguments}")
        loop = "{%- for key, value in call['arguments'].items() -%}"
        each = loop + _say(tools.argument) + _if("not loop.last", _say(tools.argument_join)) + "{%- endfor -%}"
        lines += [_say(before), each, _say(after)]
    else:
        lines.append(_say(tools.call))
    return [*lines, "{%- endfor -%}", closing]


def _end(form: ChatFormat) -> str:
    if form.last_end is None:
        return _say(form.end)
    last = _say(form.last_end)
    if form.call_end is not None:
        last = _if("message['tool_calls']", _say(form.call_end), last)
    return _if("last", last, _say(form.end))
