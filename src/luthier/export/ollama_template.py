"""Make a Go template of a chat template by asking it: conversations of markers show what it writes around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.types import Message
from luthier.export.go_template import GoError, go_text, ollama_prompt
from luthier.export.verify.chats import Case, Chats
from luthier.export.verify.metadata import habits
from luthier.export.verify.templates import difference

if TYPE_CHECKING:
    from collections.abc import Sequence

_S, _T, _U, _A = "qSYSq", "qTHTq", tuple(f"qUSR{i}q" for i in range(3)), tuple(f"qANS{i}q" for i in range(2))
MUST = ("one turn", "many turns")
"""Without these there is nothing to chat with."""


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """A template for a Modelfile, and what it cannot say."""

    text: str
    lost: tuple[str, ...]
    """Sentences."""


@dataclass(slots=True)
class _Parts:
    """What a chat template writes between turns."""

    start: str = ""
    """In front of a conversation without a system text."""
    user: str = ""
    """In front of a user's text behind an answer; `start` ends with it."""
    asks: str = ""
    """Between a user's text and an answer that is there already."""
    tail: str = ""
    """Behind the last user's text: what asks for an answer."""
    system: tuple[str, str] | None = None
    """In front of a system text and between it and the first user's; None where there is none."""
    system_last: tuple[str, str] | None = None
    """The same where the system text stands in front of the last user's text."""
    empty: str = ""
    """In front of the first user's text where the system text is empty."""
    thought: tuple[str, str, str] | None = None
    """In front of a thought of an answer and behind it; in front of both what `asks` has instead of a thought."""
    thought_last: bool = False
    """Thoughts of earlier answers are left out."""

    @property
    def skips_empty(self) -> bool:
        """Tell whether an empty system text is none."""
        return self.empty == self.start

    thinking: dict[bool, str] = field(default_factory=dict)
    """`tail` by whether thinking was asked for."""
    control: tuple[str, ...] = ()
    """Control tokens."""
    lost: list[str] = field(default_factory=list)


def go_template(tokenizer: Any) -> GoTemplate:
    """Return a Go template that renders what the tokenizer's chat template does, and sentences about what it does not.

    Raises ModelError where not even a question and an answer can be expressed.
    """
    if not tokenizer.chat_template:
        raise _refusal("the tokenizer has no chat template")
    chats = Chats(tokenizer)
    parts = _ask(chats)
    text = _written(parts)
    faults = compare(text, chats)
    for case in MUST:
        if case in faults:
            raise _refusal(f"{case}: {faults[case]}")
    sentences = [_sentence(case, fault) for case, fault in faults.items()]
    return GoTemplate(text, (*parts.lost, *sentences, *_never(chats)))


def _refusal(why: str) -> ModelError:
    return ModelError(
        f"Ollama's templates cannot express this chat template ({why}); use export_format: gguf, whose file holds the "
        "chat template itself",
        code="model_ollama",
    )


# ---- asking


def _ask(chats: Chats) -> _Parts:
    control = (token.content for token in chats.tokenizer.added_tokens_decoder.values() if len(token.content) > 1)
    parts = _Parts(control=tuple(control))
    whole = _rendered(chats, [_U[0], _A[0], _U[1], _A[1], _U[2]])
    if whole is None:
        raise _refusal("it refuses several turns")
    parts.start, parts.asks, parts.user, asks, user, parts.tail = _between(whole, [_U[0], _A[0], _U[1], _A[1], _U[2]])
    if (asks, user) != (parts.asks, parts.user):
        raise _refusal("later turns are written in another way than the first ones")
    begin = chats.tokenizer.bos_token or ""
    adds = habits(chats.tokenizer)[0] and bool(begin)
    if adds and not parts.start.startswith(begin):
        parts.lost.append(f"Ollama puts {begin} in front of a conversation, because the tokenizer does; the chat "
                          "template does not")  # fmt: skip
    _ask_system(chats, parts)
    if adds:  # llama.cpp writes it: a second one would be wrong
        parts.start = parts.start.removeprefix(begin)
        parts.empty = parts.empty.removeprefix(begin)
        if parts.system is not None:
            parts.system = (parts.system[0].removeprefix(begin), parts.system[1])
    _ask_thoughts(chats, parts)
    return parts


def _ask_system(chats: Chats, parts: _Parts) -> None:
    """Find out where a system text stands."""
    texts = [_U[0], _A[0], _U[1]]
    found = _rendered(chats, texts, system=_S)
    if found is None or _S not in found:
        parts.lost.append("a system text is left out: the chat template takes none")
        return
    parts.empty = (_rendered(chats, texts, system="") or parts.start).partition(_U[0])[0]
    places = [found.index(text) for text in (_S, *texts)]
    if places == sorted(places):
        head, behind, *_ = _between(found, [_S, *texts])
        parts.system = (head, behind)
    elif sorted(places) == [*places[1:3], places[0], places[3]]:
        _, _, before, behind, _ = _between(found, [_U[0], _A[0], _S, _U[1]])
        if before.startswith(parts.user):
            parts.system_last = (before.removeprefix(parts.user), behind)


def _ask_thoughts(chats: Chats, parts: _Parts) -> None:
    """Find out how thoughts are asked for, and where those of an answer stand."""
    for wanted in (True, False):
        found = _rendered(chats, [_U[0]], enable_thinking=wanted)
        if found is not None and _U[0] in found:
            parts.thinking[wanted] = found.rpartition(_U[0])[2]
    if not chats.takes.thought_field:
        return  # a thought is a part of the text, as in any other turn
    answer = Message(role="assistant", content=_A[0], reasoning=_T)
    turns = (Message(role="user", content=_U[0]), answer)
    again = (*turns, Message(role="user", content=_U[1]))
    for case in (Case("probe", again), Case("probe", turns, answer_next=False)):
        found = chats.render(case) or ""
        if _T in found:
            _, before, behind, *_ = _between(found, [_U[0], _T, _A[0]])
            same = len(_common_start(parts.asks, before))
            parts.thought = before[same:], behind, parts.asks[same:]
            parts.thought_last = not case.answer_next
            return


def _rendered(chats: Chats, texts: Sequence[str], *, system: str | None = None, **options: Any) -> str | None:
    """Return what the chat template makes of turns of user and assistant, with the beginning of the next answer."""
    turns = [Message(role="system", content=system)] if system is not None else []
    turns += [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    text = chats.render(Case("probe", tuple(turns), options=options))
    return text if text is not None and all(each in text for each in texts) else None


def _between(text: str, markers: Sequence[str]) -> list[str]:
    """Return what stands in front of, between and behind the markers, in their order."""
    found: list[str] = []
    for marker in markers:
        before, met, text = text.partition(marker)
        if not met:
            raise _refusal("it leaves out a turn, or changes the order of turns")
        found.append(before)
    return [*found, text]


# ---- writing


def _written(parts: _Parts) -> str:
    """Return the template; what is written in front of a user's text depends on what stands before it."""
    user = _begin_of_user(parts)
    start, after_answer = parts.start.removesuffix(user), parts.user.removesuffix(user)
    end = parts.tail
    for other in (_without_thought(parts), *parts.thinking.values()):
        end = _common_start(end, other)
    head = go_text(start)
    if start and parts.system is not None:
        alone = "not .System" if parts.skips_empty else 'ne (index .Messages 0).Role "system"'
        head = _if(alone, head)
    turns = f'{{{{ if eq .Role "user" }}}}{_user_turn(parts, user)}{{{{ .Content }}}}{go_text(end)}'
    turns += f'{{{{ else if eq .Role "assistant" }}}}{_answer_turn(parts, len(end))}'
    turns += _if("not $last", go_text(after_answer))
    if parts.system is not None:
        text = go_text(parts.system[0]) + "{{ .Content }}" + go_text(parts.system[1].removesuffix(user))
        empty = go_text(parts.empty.removesuffix(user))
        same = not parts.skips_empty and parts.empty == "".join(parts.system)
        turns += '{{ else if eq .Role "system" }}'
        turns += text if same else _if(".Content", text, "" if parts.skips_empty else empty)
    turns += "{{ end }}" + _if('and $last (ne .Role "assistant")', _asked(parts, len(end)))
    loop = "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    return f"{head}{loop}{turns}{{{{ end }}}}"


def _begin_of_user(parts: _Parts) -> str:
    """Return what stands in front of every user's text, whatever comes before it; control tokens stay whole."""
    found = parts.user
    behind_system = () if parts.system is None else (parts.system[1],)
    for text in (parts.start, parts.empty, *behind_system):
        shared = _common_start(found[::-1], text[::-1])[::-1]
        while any(_cuts(each, len(each) - len(shared), token) for each in (found, text) for token in parts.control):
            shared = shared[1:]
        # Where a system text stands inside a user's turn, nothing is shared: that is asked for when it is written.
        found = shared if shared or text == parts.start else found
    return found


def _cuts(text: str, place: int, token: str) -> bool:
    """Tell whether a place lies inside a token of the text."""
    begin = text.find(token, max(0, place - len(token) + 1))
    return 0 <= begin < place


def _if(condition: str, text: str, other: str = "") -> str:
    """Return `text` under a condition; nothing where there is nothing to write."""
    if not text and not other:
        return ""
    return f"{{{{ if {condition} }}}}{text}" + (f"{{{{ else }}}}{other}" if other else "") + "{{ end }}"


def _user_turn(parts: _Parts, user: str) -> str:
    """Return what stands in front of a user's text: nothing more where the system text has written it already."""
    if parts.system_last is not None:
        before, behind = (go_text(each) for each in parts.system_last)
        return go_text(user) + _if("and $last $.System", f"{before}{{{{ $.System }}}}{behind}")
    if parts.system is None or not user or parts.system[1].endswith(user):
        return go_text(user)
    there = "$.System" if parts.skips_empty else '(eq (index $.Messages 0).Role "system")'
    return _if(f"not (and (eq $i 1) {there})", go_text(user))


def _without_thought(parts: _Parts) -> str:
    """Return what stands between a user's text and an answer, up to where a thought would begin."""
    return parts.asks.removesuffix(parts.thought[2]) if parts.thought is not None else parts.asks


def _answer_turn(parts: _Parts, written: int) -> str:
    """Return what an answer is written as; so many characters in front of it are there already."""
    text = go_text(_without_thought(parts)[written:])
    if parts.thought is not None:
        before, behind, instead = (go_text(each) for each in parts.thought)
        condition = "and $last .Thinking" if parts.thought_last else ".Thinking"
        text += _if(condition, f"{before}{{{{ .Thinking }}}}{behind}", instead)
    return text + "{{ .Content }}"


def _asked(parts: _Parts, written: int) -> str:
    """Return what asks for an answer, by what the user says about thinking."""
    usual = parts.tail[written:]
    on, off = (go_text(parts.thinking.get(wanted, parts.tail)[written:]) for wanted in (True, False))
    if on == off == go_text(usual):
        return on
    return _if("$.IsThinkSet", _if("$.Think", on, off), go_text(usual))


def _common_start(one: str, other: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:same]


# ---- comparing


def compare(template: str, chats: Chats) -> dict[str, str]:
    """Return how the text of each case differs from the chat template's, by the case's name; equal ones are left out.

    Ollama always asks for an answer, and describes tools in a form of its own: such cases are not compared.
    """
    begin = chats.tokenizer.bos_token or ""
    added = begin if habits(chats.tokenizer)[0] else ""
    faults: dict[str, str] = {}
    for case in chats.cases():
        wanted = chats.render(case)
        has_thought = any(message.reasoning for message in case.messages)
        if wanted is None or not case.answer_next or case.tools or (has_thought and not chats.takes.thought_field):
            continue
        try:
            found = added + ollama_prompt(template, case.messages, think=case.options.get("enable_thinking"))
        except GoError as error:
            faults[case.name] = f"the template is broken: {error}"
            continue
        if found not in (wanted, added + wanted):
            faults[case.name] = difference(found, wanted)
    return faults


_SENTENCES = {
    "system": "a system text does not stand where the chat template puts it",
    "system, many turns": "a system text in front of several turns does not stand where the chat template puts it",
    "empty system": "an empty system text is written in another way",
    "trailing blanks": "blanks around a text stay, which the chat template removes",
    "thought": "thoughts of earlier answers are left out or written in another way",
    "thinking on": "asking for thoughts writes another text",
    "thinking off": "asking for no thoughts writes another text",
}


def _sentence(case: str, fault: str) -> str:
    return f"{_SENTENCES.get(case, f'{case} is written in another way')}: {fault}"


def _never(chats: Chats) -> list[str]:
    """Return what Ollama has no words for."""
    if chats.takes.tools or chats.takes.calls is not None:
        return ["tools are left out: Ollama writes their descriptions and calls as JSON in a form of its own, which is "
                "not what the model was trained on"]  # fmt: skip
    return []
