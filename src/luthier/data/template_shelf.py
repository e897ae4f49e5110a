"""What a tokenizer gets when a template is asked for by name."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError
from luthier.core.registry import did_you_mean
from luthier.data.chat_format import ChatFormat, jinja_of
from luthier.data.template_names import FORMATS, NAMES, OWN
from luthier.data.tool_formats import NAMED

if TYPE_CHECKING:
    from collections.abc import Sequence


def shelf_names() -> list[str]:
    """Return the names of the templates that luthier brings, without aliases."""
    return sorted(FORMATS)


def template_text(name: str, tools: str | None = None, *, own: str = "") -> str:
    """Return the chat template called `name`, with the tool format called `tools` if that is given.

    Raises ConfigError with the nearest name when there is none, and with `own`, what the tokenizer itself offers.
    """
    if name not in NAMES:
        known = sorted({*NAMES, *OWN})
        near = did_you_mean(name, known) or "."
        raise ConfigError(
            f"unknown template {name!r}{near}{own} There are: {', '.join(known)}", code="config_unknown_name"
        )
    form = NAMES[name]
    if tools is not None:
        form = _with_tools(name, form, tools)
    if not form.jinja:
        return jinja_of(form)
    return files("luthier.data").joinpath("templates", f"{form.jinja}.jinja").read_text(encoding="utf-8")


def _with_tools(name: str, form: ChatFormat, tools: str) -> ChatFormat:
    """Return a format with other words for tools. Raises ConfigError naming both keys where that cannot be."""
    if tools not in NAMED:
        near = did_you_mean(tools, sorted(NAMED)) or "."
        raise ConfigError(
            f"unknown tool_format {tools!r}{near} There are: {', '.join(sorted(NAMED))}", code="config_unknown_name"
        )
    if form.tools is None or form.jinja:
        why = "has no place for tools" if form.tools is None else "is written for its own words only"
        raise ConfigError(f"tool_format: {tools} and template: {name} contradict each other: that template {why}")
    return replace(form, tools=NAMED[tools])


def apply_named_template(
    tokenizer: Any, name: str | None, fitting: Sequence[str] = (), *, tools: str | None = None
) -> None:
    """Give `tokenizer` the chat template called `name`, and its end-of-turn token as the end token.

    None, "auto" and "default" keep its own; where there is none, "default" is a plain one. `fitting`: names that the
    model's family is used with, for messages. `tools`: a tool format in place of the template's. Raises ConfigError for
    an unknown name, a missing template, special tokens that the tokenizer lacks, or a tool format without a named
    template.
    """
    own = getattr(tokenizer, "chat_template", None)
    if name is None or name in OWN:
        if own is not None:
            if tools is not None:
                raise ConfigError(
                    f"tool_format: {tools} changes a named template, but this tokenizer keeps its own; name one "
                    "(template: ...), or leave tool_format out"
                )
            return
        if name != "default":
            listed = ", ".join(n for n in fitting if n != "default") or ", ".join(shelf_names())
            raise ConfigError(
                f"this tokenizer brings no chat template; set template to one of: {listed}",
                code="config_no_template",
            )
        name = "default"
    offered = " This tokenizer brings a template of its own (template: auto)." if own is not None else ""
    text = template_text(name, tools, own=offered)
    form = NAMES[name]
    missing = [token for token in form.needs if not _has(tokenizer, token)]
    if missing:
        raise ConfigError(_lacks(name, missing, [n for n in fitting if n != name and _fits(tokenizer, n)]))
    if form.last_end is None and form.stop is not None and tokenizer.eos_token != form.stop:
        tokenizer.eos_token = form.stop
    tokenizer.chat_template = text


def _has(tokenizer: Any, token: str) -> bool:
    return tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id)


def _fits(tokenizer: Any, name: str) -> bool:
    if name in OWN:
        return getattr(tokenizer, "chat_template", None) is not None
    return name in NAMES and all(_has(tokenizer, token) for token in NAMES[name].needs)


def _lacks(name: str, missing: list[str], fitting: list[str]) -> str:
    tokens = ", ".join(map(repr, missing))
    remedy = f"take {' or '.join(fitting)}" if fitting else "take the template of the model's own family"
    plural = "s" if missing[1:] else ""
    return (
        f"template {name!r} needs the special token{plural} {tokens}, which this tokenizer has not; {remedy}, "
        "or none for the tokenizer's own"
    )
