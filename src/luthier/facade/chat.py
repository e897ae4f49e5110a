"""Chat templates by the names that scripts use, put into an ordinary tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError
from luthier.core.log import printable, say_once
from luthier.core.registry import did_you_mean
from luthier.data.chat_format import ChatFormat, jinja_of
from luthier.data.family_chats import CHATML, VICUNA
from luthier.data.template_names import FORMATS, NAMES, OWN
from luthier.data.template_shelf import template_text
from luthier.facade.chat_ollama import keep_modelfile
from luthier.facade.chat_tokens import has, rename
from luthier.facade.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROLES = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}
"""The usual names of fields and roles."""
SHAREGPT = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
PARTS = "_luthier_response_parts"
"""Attribute of a tokenizer whose template is the user's own: what stands before a question and before an answer."""
_SYSTEM_SLOT = "{system_message}"

_UNSLOTH = ChatFormat(
    family="base models",
    prefix="{bos}",
    system="{text}\n",
    default_system="You are a helpful assistant to the user",
    user=">>> User: {text}\n",
    ask=">>> Assistant: ",
    end="{eos}\n",
)
_VICUNA_OLD = replace(
    VICUNA,
    family="Vicuna 1.0",
    system="{text}\n",
    default_system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    user="### Human: {text}\n",
    ask="### Assistant: ",
    answer="{text}",
    end="{eos}\n",
)
_GEMMA_CHATML = replace(CHATML, family="Gemma with ChatML words", prefix="{bos}")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a name stands for."""

    shelf: str = ""
    """Name on our shelf; empty: `own`."""
    own: ChatFormat | None = None
    moves_end: bool = False
    """The end word takes the place of a tokenizer's own end token where it has no such word."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Tokens that get another word, id by id."""
    thinks: bool | None = None
    """Value of enable_thinking where a script gives none."""

    @property
    def form(self) -> ChatFormat:
        """Return the format."""
        return self.own if self.own is not None else NAMES[self.shelf]

    def text(self, needs: tuple[str, ...]) -> str:
        """Return the template; `needs`: special tokens that it shall name as needed."""
        if self.own is None and needs == self.form.needs:
            return template_text(self.shelf)
        return jinja_of(replace(self.form, needs=needs))


_OF_GEMMA = Choice(own=_GEMMA_CHATML, moves_end=True,
                   renamed=(("<start_of_turn>", "<|im_start|>"), ("<end_of_turn>", "<|im_end|>")))  # fmt: skip
_CHOICES: dict[str, tuple[str, Choice]] = {
    "unsloth": ("", Choice(own=_UNSLOTH)),
    "zephyr": ("", Choice("zephyr")),
    "chatml": ("", Choice("chatml", moves_end=True)),
    "mistral": ("", Choice("mixtral")),
    "llama": ("", Choice("llama2")),
    "vicuna": ("", Choice("vicuna")),
    "vicuna_old": ("", Choice(own=_VICUNA_OLD)),
    "alpaca": ("", Choice("alpaca")),
    "gemma": ("gemma2", Choice("gemma")),
    "gemma_chatml": ("gemma2_chatml", _OF_GEMMA),
    "gemma-3": ("gemma-3n", Choice("gemma3")),
    "gemma-4": ("", Choice("gemma4")),
    "gemma-4-thinking": ("", Choice("gemma4", thinks=True)),
    "llama-3": ("llama-3.1 llama-3.2 llama-3.3 llama-31 llama-32 llama-33", Choice("llama3")),
    "phi-3": ("phi-3.5 phi-35", Choice("phi")),
    "phi-4": ("", Choice("phi4")),
    "qwen-2.5": ("qwen-25", Choice("qwen")),
    "qwen-3": ("qwen3", Choice("qwen3")),
    "qwen3-instruct": ("", Choice("qwen3_nothink")),
    "qwen3-thinking": ("", Choice("qwen3")),
    "gpt-oss": ("", Choice("gpt_oss")),
    "lfm-2": ("lfm-2.5", Choice("lfm2")),
    "starling": ("", Choice("openchat")),
    "yi-chat": ("", Choice("yi")),
}
"""Name -> other spellings and what it stands for. Case does not matter, nor does which of `-`, `_`, `.` is used."""


_OWN_ONE = "The tokenizer brings a chat template of its own, which stays where get_chat_template is not called"


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c not in "-_. ")


_BY_KEY: dict[str, Choice] = {
    **{_key(name): Choice(name) for name in FORMATS},
    **{_key(each): choice for name, (more, choice) in _CHOICES.items() for each in (name, *more.split())},
}


def template_names() -> list[str]:
    """Return every name, those of scripts first."""
    return list(dict.fromkeys([*_CHOICES, *(each for more, _ in _CHOICES.values() for each in more.split()), *FORMATS]))


def choice_of(name: str, tokenizer: Any = None) -> Choice:
    """Return what `name` stands for. Raises ConfigError with the nearest name and all there are."""
    found = _BY_KEY.get(_key(name))
    if found is None:
        near = did_you_mean(name, template_names()) or "."
        own = f" {_OWN_ONE}." if getattr(tokenizer, "chat_template", None) else ""
        raise ConfigError(
            f"unknown chat template {printable(name)}{near}{own} There are: {', '.join(template_names())}",
            code="config_unknown_name",
        )
    return found


def get_chat_template(
    tokenizer: Any,
    chat_template: str | tuple[str, str] | list[str] = "chatml",
    mapping: Mapping[str, str] = ROLES,
    map_eos_token: bool = True,
    system_message: str | None = None,
) -> Any:
    """Give `tokenizer` a chat template and return it, the same object.

    `chat_template`: a name, or a Jinja template and its end word, which may be "eos_token". `mapping`: names of the
    fields and roles in the data; the template then takes both those and the usual ones. `map_eos_token`: the word that
    ends an answer becomes the end token: the tokenizer's own token of that name, else the end token is renamed to it,
    so that no row is added to the model. `system_message`: the text for conversations without one.

    Raises ConfigError for an unknown name and for tokens that the tokenizer lacks.
    """
    if isinstance(chat_template, str):
        text = _named(tokenizer, chat_template, map_eos_token=map_eos_token)
    else:
        text = _given(tokenizer, chat_template, map_eos_token=map_eos_token)
    if _SYSTEM_SLOT in text and system_message is not None:
        text = text.replace(_SYSTEM_SLOT, system_message.replace("\\", "\\\\").replace("'", "\\'"))
        system_message = None
    tokenizer.chat_template = with_prelude(text, mapping, system_message)
    if hasattr(tokenizer, PARTS):
        delattr(tokenizer, PARTS)
    keep_modelfile(tokenizer)
    return tokenizer


def _named(tokenizer: Any, name: str, *, map_eos_token: bool) -> str:
    if name in OWN:
        if tokenizer.chat_template is None:
            raise ConfigError("the tokenizer brings no chat template; name one", code="config_no_template")
        return _without_prelude(str(tokenizer.chat_template))
    choice = choice_of(name, tokenizer)
    form = choice.form
    for word, other in choice.renamed:
        if has(tokenizer, word) and not has(tokenizer, other):
            rename(tokenizer, word, other)
    stop = form.stop if form.last_end is None else None
    if stop is not None and map_eos_token:
        if not has(tokenizer, stop) and choice.moves_end:
            say_once(f"{tokenizer.eos_token} is written {stop} from now on; its id and its row stay")
            rename(tokenizer, tokenizer.eos_token, stop)
        if has(tokenizer, stop) and tokenizer.eos_token != stop:
            tokenizer.eos_token = stop
    missing = [token for token in form.needs if not has(tokenizer, token)]
    if missing and not choice.moves_end:
        raise ConfigError(_lacks(tokenizer, name, missing))
    if missing:
        say_once(f"template {name!r}: this tokenizer has no token {', '.join(missing)}, which is written as text")
    text = choice.text(tuple(token for token in form.needs if token not in missing))
    return text if choice.thinks is None else _thinking(text, on=choice.thinks)


def _thinking(text: str, *, on: bool) -> str:
    chosen = f"{{%- set enable_thinking = {str(on).lower()} -%}}"
    return f"{{%- if enable_thinking is not defined -%}}{chosen}{{%- endif -%}}{text}"


def _lacks(tokenizer: Any, name: str, missing: list[str]) -> str:
    fitting = [each for each, (_, choice) in _CHOICES.items() if all(has(tokenizer, t) for t in choice.form.needs)]
    own = f" {_OWN_ONE}." if tokenizer.chat_template else ""
    plural = "s" if missing[1:] else ""
    return (
        f"template {name!r} needs the special token{plural} {', '.join(map(repr, missing))}, which this tokenizer has "
        f"not; take one that fits: {', '.join(fitting)}.{own}"
    )


def _given(tokenizer: Any, pair: tuple[str, str] | list[str], *, map_eos_token: bool) -> str:
    """Take a template of the user's own with its end word."""
    if len(pair) != 2 or not all(isinstance(each, str) for each in pair):
        raise ArgumentError("chat_template is a name, or a pair of a Jinja template and its end word")
    text, end = pair
    if end in ("eos_token", tokenizer.eos_token):
        return text
    if not map_eos_token:
        raise ArgumentError(
            f"the template ends answers with {end!r} and map_eos_token is False; set it to True, or write 'eos_token'"
        )
    if not has(tokenizer, end):
        say_once(f"{tokenizer.eos_token} is written {end} from now on; its id and its row stay")
        rename(tokenizer, tokenizer.eos_token, end)
    tokenizer.eos_token = end
    return text


# ---- what stands in front of a template


_MARK = "{#- begin of the template -#}"


def with_prelude(text: str, mapping: Mapping[str, str], system_message: str | None) -> str:
    """Return the template behind what renames fields and roles, and adds a system text where there is none."""
    unknown = [key for key in mapping if key not in ROLES]
    missing = [key for key in ROLES if key not in mapping]
    if unknown or missing:
        raise ArgumentError(f"mapping has the keys {', '.join(ROLES)}; found {', '.join(mapping) or 'none'}")
    before = ""
    if dict(mapping) != ROLES:
        before += _renaming(mapping)
    if system_message is not None:
        before += _with_system(system_message)
    return f"{before}{_MARK}{text}" if before else text


def _without_prelude(text: str) -> str:
    return text.rpartition(_MARK)[2]


def _renaming(mapping: Mapping[str, str]) -> str:
    field, content = (_quoted(mapping[key]) for key in ("role", "content"))
    roles = ", ".join(f"{_quoted(mapping[role])}: {_quoted(role)}" for role in ("user", "assistant"))
    # Message by message: a file may hold both shapes.
    return (
        "{%- set renamed = namespace(messages=[]) -%}{%- for message in messages -%}"
        f"{{%- if {field} in message and 'role' not in message -%}}"
        f"{{%- set role = {{{roles}}}[message[{field}]] or message[{field}] -%}}"
        f"{{%- set message = {{'role': role, 'content': message[{content}]}} -%}}{{%- endif -%}}"
        "{%- set renamed.messages = renamed.messages + [message] -%}{%- endfor -%}"
        "{%- set messages = renamed.messages -%}"
    )


def _with_system(text: str) -> str:
    return (
        "{%- if messages[0]['role'] != 'system' -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': {_quoted(text)}}}] + messages -%}}"
        "{%- endif -%}"
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def remove_special_tokens(tokenizer: Any, prompt: str) -> str:
    """Return `prompt` without the begin token in front, for a tokenizer that puts it there itself."""
    begin = tokenizer.bos_token
    return prompt.removeprefix(begin) if begin else prompt


CHAT_TEMPLATES: dict[str, tuple[str, str]] = {
    each: (choice.text(choice.form.needs), choice.form.stop or "eos_token")
    for name, (more, choice) in _CHOICES.items()
    for each in (name, *more.split())
}
"""Name -> Jinja template and end word."""
