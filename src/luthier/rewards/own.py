"""Rewards of the user's own: functions and classes, told apart by the names of their parameters."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.config.parts import Source, load, make
from luthier.core.errors import ConfigError, DataError
from luthier.core.types import Answer, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Form = Literal["single", "answers", "columns"]
"""single: one answer at a time; answers: many(answers); columns: TRL's f(completions, prompts, **columns)."""
_SINGLE: dict[str, Callable[[Answer], object]] = {
    "text": lambda answer: answer.completion.text,
    "example": lambda answer: answer.example,
    "answer": lambda answer: answer,
}
_OF_TRL = ("completions", "completion_ids", "prompts")
_HOOKS = ("log_extra", "log_metric")
"""What TRL's trainer gives to be called; here nothing comes of it."""
_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
_ACCEPTED = "(text, example), (answer), or as in TRL (completions, prompts, **columns)"


class OwnReward:
    """Calls what a path of the user's leads to; in its own process it is imported there again."""

    may_hang: ClassVar[bool] = True

    def __init__(self, source: Source, settings: Mapping[str, Any]) -> None:
        """Import it. Raises ConfigError with a sentence where that fails or it cannot grade."""
        what = f"reward {source}"
        self.source, self.settings = source, dict(settings)
        options = dict(settings)
        self._completions = options.pop("completions", "auto")
        if self._completions not in ("auto", "text", "messages"):
            raise ConfigError(f"{what}: completions: expected auto, text or messages, found {self._completions!r}")
        made = make(load(source, what), options, what)
        if hasattr(made, "many"):
            self._call, self.form = made.many, "answers"
        elif callable(made):
            self._call = made
            self._parameters, self._takes_all = _parameters_of(made, what)
            self.form: Form = _form_of(list(self._parameters), self._required(), what)
        else:
            raise ConfigError(f"{what} is a {type(made).__name__}, which cannot be called; {_ACCEPTED} is expected")
        if self._completions != "auto" and self.form != "columns":
            raise ConfigError(f"{what}: completions is for functions of the form (completions, ...)")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.settings)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that a function in TRL's form asks for by name."""
        if self.form != "columns":
            return ()
        return tuple(name for name in self._required() if name not in (*_OF_TRL, *_HOOKS))

    def __call__(self, answer: Answer) -> float | None:
        """Grade one answer."""
        return self._result(**{name: _SINGLE[name](answer) for name in self._parameters if name in _SINGLE})

    def _result(self, *arguments: Any, **named: Any) -> Any:
        result = self._call(*arguments, **named)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    def _required(self) -> list[str]:
        return [name for name, each in self._parameters.items() if each.default is inspect.Parameter.empty]

    def _many(self, answers: Sequence[Answer]) -> Any:
        if self.form == "answers":
            return self._result(answers)
        as_messages = self._as_messages(answers[0])
        known: dict[str, Any] = {
            "completions": [_completion(answer, as_messages=as_messages) for answer in answers],
            "prompts": [_prompt(answer, as_messages=as_messages) for answer in answers],
            "completion_ids": [list(answer.completion.tokens) for answer in answers],
            **dict.fromkeys(_HOOKS, _nothing),
        }
        columns = {name: None for answer in answers for name in answer.example.extra if name not in known}
        columns.pop("prompt", None)
        columns.pop("completion", None)
        for name in columns:
            known[name] = [answer.example.extra.get(name) for answer in answers]
        if missing := [name for name in self._required() if name not in known]:
            there = ", ".join(columns) or "no columns"
            raise DataError(
                f"reward {self.source} asks for {', '.join(missing)}, but {answers[0].example.origin or 'the row'} "
                f"has {there}",
                code="reward_column",
            )
        asked = known if self._takes_all else {name: known[name] for name in self._parameters if name in known}
        return self._result(**asked)

    def _as_messages(self, answer: Answer) -> bool:
        """Tell whether completions are passed as conversations: as asked, as annotated, or as the data are."""
        if self._completions != "auto":
            return self._completions == "messages"
        parameter = self._parameters.get("completions")
        annotation = (
            "" if parameter is None or parameter.annotation is inspect.Parameter.empty else parameter.annotation
        )
        shown = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        if "str" in shown or "dict" in shown:
            return "dict" in shown
        return isinstance(answer.example.extra.get("prompt"), (list, tuple))


class _Together(OwnReward):
    """One that grades all answers in one call."""

    def many(self, answers: Sequence[Answer]) -> Any:
        """Grade all answers."""
        return self._many(answers)


def own_reward(source: Source, settings: Mapping[str, Any]) -> OwnReward:
    """Return the reward of the user's that `source` leads to. Raises ConfigError."""
    made = OwnReward(source, settings)
    return made if made.form == "single" else _Together(source, settings)


def _parameters_of(function: Any, what: str) -> tuple[dict[str, inspect.Parameter], bool]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} does not tell its parameters; {_ACCEPTED} is expected") from error
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return {name: each for name, each in parameters.items() if each.kind in _POSITIONAL}, takes_all


def _form_of(names: list[str], required: list[str], what: str) -> Form:
    if any(name in _OF_TRL for name in names):
        if "trainer_state" in required:
            raise ConfigError(f"{what} asks for trainer_state, which there is not here; give it a default")
        return "columns"
    if any(name in _SINGLE for name in names) and all(name in _SINGLE for name in required):
        return "single"
    shown = ", ".join(names) or "no parameters"
    raise ConfigError(f"{what} has the parameters ({shown}); {_ACCEPTED} is expected")


async def _awaited(result: Any) -> Any:
    return await result


def _nothing(*_: object, **__: object) -> None:
    return None


def _completion(answer: Answer, *, as_messages: bool) -> Any:
    if not as_messages:
        return answer.completion.text
    turns = answer.turns or (Message(role="assistant", content=answer.completion.text),)
    return [turn.as_dict() for turn in turns]


def _prompt(answer: Answer, *, as_messages: bool) -> Any:
    if as_messages:
        return [message.as_dict() for message in answer.example.context]
    own = answer.example.extra.get("prompt")
    return own if isinstance(own, str) else "\n\n".join(message.content for message in answer.example.context)
