"""How a model writes calls of tools: found by letting its template write one."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from luthier.core.errors import DataError
from luthier.core.types import Message
from luthier.data import tool_formats
from luthier.data.chat_format import ToolFormat

if TYPE_CHECKING:
    from luthier.data.template import ChatTemplate

_NAME, _KEY, _VALUE = "find_the_form", "some_key", "some value"
_FORMS = [form for form in vars(tool_formats).values() if isinstance(form, ToolFormat) and form.call]
_BLANKS = re.compile(r"\s+")


def form_of(template: ChatTemplate) -> ToolFormat | None:
    """Return the form in which a template writes calls; None where it writes none, or in a form that is not known."""
    text = _squeezed(_sample(template))
    found = [form for form in _FORMS if _squeezed(written(form, _NAME, {_KEY: _VALUE})) in text]
    # A form may be a part of another one.
    return max(found, key=lambda form: len(written(form, _NAME, {_KEY: _VALUE})), default=None)


def _sample(template: ChatTemplate) -> str:
    call = {"name": _NAME, "arguments": {_KEY: _VALUE}}
    properties = {_KEY: {"type": "string", "description": "a value"}}
    tool = {"name": _NAME, "description": "a tool", "parameters": {"type": "object", "properties": properties}}
    messages = [
        Message(role="user", content="question"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="result"),
    ]
    try:
        prompt = template.prompt(messages, json.dumps([{"type": "function", "function": tool}]))
    except DataError:
        return ""
    return template.tokenizer.decode(prompt, skip_special_tokens=False)


def written(form: ToolFormat, name: str, arguments: dict[str, str]) -> str:
    """Return one call as a model writes it."""
    inner = json.dumps(arguments)
    if form.argument:
        each = (
            form.argument.replace("{key}", k).replace("{value}", v).replace("{json}", json.dumps(v))
            for k, v in arguments.items()
        )
        inner = form.argument_join.join(each)
    return form.open + form.call.replace("{name}", name).replace("{arguments}", inner) + form.close


def _squeezed(text: str) -> str:
    return _BLANKS.sub("", text)
