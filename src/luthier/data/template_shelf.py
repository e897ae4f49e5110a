"""What a tokenizer gets when a template is asked for by name."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError
from luthier.core.registry import did_you_mean
from luthier.data.chat_format import jinja_of
from luthier.data.template_names import FORMATS, NAMES, OWN

if TYPE_CHECKING:
    from collections.abc import Sequence


def shelf_names() -> list[str]:
    """Return the names of the templates that luthier brings, without aliases."""
    return sorted(FORMATS)


def template_text(name: str) -> str:
    """Return the chat template called `name`; raises ConfigError with the nearest name when there is none."""
    if name not in NAMES:
        known = sorted({*NAMES, *OWN})
        near = did_you_mean(name, known) or "."
        raise ConfigError(f"unknown template {name!r}{near} There are: {', '.join(known)}", code="config_unknown_name")
    form = NAMES[name]
    if not form.jinja:
        return jinja_of(form)
    return files("luthier.data").joinpath("templates", f"{form.jinja}.jinja").read_text(encoding="utf-8")


def apply_named_template(tokenizer: Any, name: str | None, fitting: Sequence[str] = ()) -> None:
    """Give `tokenizer` the chat template called `name`, and its end-of-turn token as the end token.

    None, "auto" and "default" keep its own; where there is none, "default" is a plain one. `fitting`: names that the
    model's family is used with, for messages. Raises ConfigError for an unknown name, a missing template, or special
    tokens that the tokenizer lacks.
    """
    own = getattr(tokenizer, "chat_template", None)
    if name is None or name in OWN:
        if own is not None:
            return
        if name != "default":
            listed = ", ".join(n for n in fitting if n != "default") or ", ".join(shelf_names())
            raise ConfigError(
                f"this tokenizer brings no chat template; set template to one of: {listed}",
                code="config_no_template",
            )
        name = "default"
    text = template_text(name)
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
