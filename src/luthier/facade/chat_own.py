"""A chat template made of an example that the user writes: {INPUT}, {OUTPUT} and {SYSTEM} stand for the texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.log import say_once
from luthier.data.chat_format import ChatFormat, jinja_of
from luthier.export.verify.metadata import habits
from luthier.facade.chat import PARTS, SHAREGPT, with_prelude
from luthier.facade.chat_ollama import keep_modelfile
from luthier.facade.chat_parts import common_start
from luthier.facade.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

_IN, _OUT, _SYSTEM = "{INPUT}", "{OUTPUT}", "{SYSTEM}"
_SLOTS = ("{text}", "{bos}", "{eos}", "{round}")
INSTRUCTION = "Below are instructions for tasks. Write a response that completes each of them."
"""The system text where a script names none."""
DEFAULT = "{SYSTEM}\n\n### Instruction:\n{INPUT}\n\n### Response:\n{OUTPUT}"
"""The template where a script names none."""


def apply_chat_template(
    dataset: Any,
    tokenizer: Any,
    chat_template: str = DEFAULT,
    default_system_message: str | None = INSTRUCTION,
    extra_eos_tokens: Sequence[str] | None = None,
) -> Any:
    """Make the tokenizer's chat template of an example, and return the dataset with a column `text` that it wrote.

    `chat_template`: a conversation of two questions and answers, {INPUT} and {OUTPUT} each; one of each is enough. The
    text before the first {INPUT} is written once; with {SYSTEM} in it a row's system text stands there, else
    `default_system_message`. Each answer ends with the end token, unless one of `extra_eos_tokens` or the end token
    stands behind {OUTPUT} already. The dataset has a column `conversations` or `messages`.

    Raises ArgumentError for an example that cannot be read, and for rows without a conversation.
    """
    column = next((name for name in ("conversations", "messages") if name in dataset.column_names), None)
    if column is None:
        raise ArgumentError(
            f"apply_chat_template needs a column conversations or messages; found {', '.join(dataset.column_names)}; "
            "make one with to_sharegpt"
        )
    ends = [*(extra_eos_tokens or ()), *([tokenizer.eos_token] if tokenizer.eos_token else [])]
    form = format_of(chat_template, default_system_message, ends, begins=habits(tokenizer)[0])
    tokenizer.chat_template = with_prelude(jinja_of(form), SHAREGPT, None)
    setattr(tokenizer, PARTS, (form.user.removesuffix("{text}"), form.ask))
    keep_modelfile(tokenizer)

    def write(rows: dict[str, list[Any]]) -> dict[str, list[str]]:
        return {"text": [tokenizer.apply_chat_template(row, tokenize=False) for row in rows[column]]}

    return dataset.map(write, batched=True, desc="Writing conversations")


def format_of(text: str, default_system: str | None, ends: Sequence[str], *, begins: bool = True) -> ChatFormat:
    """Return the format of an example.

    `ends`: words that may end an answer; `begins`: the begin token stands in front of a conversation.
    """
    slots = [slot for slot in _SLOTS if slot in text]
    if slots:
        raise ArgumentError(f"{', '.join(slots)} cannot stand in a chat template; {_IN}, {_OUT} and {_SYSTEM} can")
    if text.count(_IN) == text.count(_OUT) == 1:
        text = _twice(text)
    if text.count(_IN) != 2 or text.count(_OUT) != 2:
        raise ArgumentError(
            f"chat_template has {_IN} {text.count(_IN)} times and {_OUT} {text.count(_OUT)} times; write each twice, "
            "so that it can be seen what stands between turns"
        )
    head, rest = text.split(_IN, 1)
    ask, rest = _cut(rest, _OUT)
    between, rest = _cut(rest, _IN)
    again, tail = _cut(rest, _OUT)
    if ask != again:
        raise ArgumentError(f"chat_template asks for answers in two ways: {ask!r} and {again!r}")
    end, user = _divided(head, between, tail, ends)
    system = head.removesuffix(user)
    closed = next((word for word in ends if end.startswith(word) or tail.startswith(word)), None)
    end = end if closed is not None else "{eos}" + end
    if closed is None:
        say_once("each answer of the chat template ends with the end token, which is added")
    if _SYSTEM in system:
        written, default = system.replace(_SYSTEM, "{text}"), default_system or ""
    else:
        written, default = "{text}", system
    return ChatFormat(
        family="own",
        prefix="{bos}" if begins else "",
        system=written,
        default_system=default,
        user=user + "{text}",
        ask=ask,
        end=end,
    )


def _twice(text: str) -> str:
    """Return an example of one turn as one of two."""
    head, rest = text.split(_IN, 1)
    if _SYSTEM in head:
        user = head.rpartition(_SYSTEM)[2]
    else:
        lines = head.rsplit("\n\n", 1)
        user = "\n\n" * (len(lines) > 1) + lines[-1]
    tail = rest.partition(_OUT)[2]
    return f"{text}{user.removeprefix(tail)}{_IN}{rest}"


def _cut(text: str, slot: str) -> tuple[str, str]:
    before, found, behind = text.partition(slot)
    if not found or any(other in before for other in (_IN, _OUT, _SYSTEM)):
        raise ArgumentError(f"chat_template is read as {_IN} {_OUT} {_IN} {_OUT}, with {_SYSTEM} in front at most")
    return before, behind


def _divided(head: str, between: str, tail: str, ends: Sequence[str]) -> tuple[str, str]:
    """Return what ends an answer and what begins a question: both stand between turns."""
    user = common_start(head[::-1], between[::-1])[::-1]
    # What stands behind the last answer, too, belongs to the answer; so does an end token.
    closing = common_start(tail, between) or next((word for word in ends if between.startswith(word)), "")
    user = user[max(0, len(user) + len(closing) - len(between)) :]
    return between.removesuffix(user), user


def parts_of(tokenizer: Any) -> tuple[str, str] | None:
    """Return the instruction and response parts that `apply_chat_template` kept, if it did."""
    return getattr(tokenizer, PARTS, None)
