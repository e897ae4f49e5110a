"""Prompts -> groups of answers from an engine, and, with an environment, episodes of several turns."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from luthier.core.errors import TrainingError
from luthier.core.log import say_once
from luthier.core.types import Answer, Completion, Message, Sampling, Segment
from luthier.data.prompts import PromptRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.protocols import Engine, Environment
    from luthier.data.template import ChatTemplate


@dataclass(slots=True, eq=False)
class Episode:
    """One answer on its way from the engine into the loss."""

    answer: Answer
    rewards: dict[str, float | None] = field(default_factory=dict[str, float | None])
    """Each reward alone; None is missing."""
    reward: float | None = None
    """What is learned from; None leaves the answer out."""
    advantage: float | None = None
    segment: Segment | None = None
    """None while, or where, nothing is learned from the answer."""

    @property
    def is_cut_off(self) -> bool:
        """Tell whether the answer reached its limit without an end."""
        return self.answer.completion.finish_reason == "length"

    def make_segment(self, limit: int) -> Segment:
        """Return prompt and answer as one sequence; what the policy did not write weighs nothing."""
        completion = self.answer.completion
        before, learned = len(completion.prompt_tokens), completion.learned or (True,) * len(completion.tokens)
        engine = completion.drawn_logp or completion.logp
        return Segment(
            tokens=[*completion.prompt_tokens, *completion.tokens],
            weight=[0.0] * before + [float(each) for each in learned],
            streams={} if engine is None else {"engine_logp": [0.0] * before + list(engine)},
            tags={"limit": float(limit)},
            origin=self.answer.example.origin,
        )


@dataclass(slots=True, eq=False)
class Group:
    """The answers to one prompt."""

    row: PromptRow
    episodes: list[Episode]

    def graded(self) -> list[Episode]:
        """Return the answers that have a reward."""
        return [episode for episode in self.episodes if episode.reward is not None]

    def is_flat(self, smallest: int) -> bool:
        """Tell whether there is nothing to tell good answers from bad ones by."""
        rewards = [episode.reward for episode in self.graded()]
        return len(rewards) < smallest or len(set(rewards)) == 1


def answer_prompts(
    rows: Sequence[PromptRow],
    engine: Engine,
    hows: Sequence[Sampling],
    count: int,
    *,
    environment: Environment | None,
    template: ChatTemplate,
    max_turns: int,
) -> list[Group]:
    """Return `count` answers to each prompt; `hows` tells for each prompt how they are drawn."""
    found = engine.generate([row.tokens for row in rows], hows, count)
    groups = [
        Group(row, [Episode(Answer(example=row.example, completion=each)) for each in completions])
        for row, completions in zip(rows, found, strict=True)
    ]
    if environment is not None:
        _play(groups, engine, hows, environment=environment, template=template, max_turns=max_turns)
    for group in groups:
        group.episodes = [e for e in group.episodes if e.answer.completion.finish_reason != "abort"]
    return groups


def _play(
    groups: Sequence[Group],
    engine: Engine,
    hows: Sequence[Sampling],
    *,
    environment: Environment,
    template: ChatTemplate,
    max_turns: int,
) -> None:
    """Let the environment answer, and the model go on, until every episode is over."""
    live = [(episode, how) for group, how in zip(groups, hows, strict=True) for episode in group.episodes]
    for episode, _ in live:
        episode.answer = replace(episode.answer, turns=(_turn(episode.answer.completion),))
    for turn in range(1, max_turns):
        goes_on = [(e, how) for e, how in live if _observe(e, environment, template, how.max_new_tokens)]
        if not goes_on:
            return
        prompts = [(*e.answer.completion.prompt_tokens, *e.answer.completion.tokens) for e, _ in goes_on]
        rooms = [how.max_new_tokens - len(e.answer.completion.tokens) for e, how in goes_on]
        seeds = [_seed_of(how, f"{turn} {number}") for number, (_, how) in enumerate(goes_on)]
        how_each = [
            replace(how, max_new_tokens=room, sampling_seed=seed)
            for (_, how), room, seed in zip(goes_on, rooms, seeds, strict=True)
        ]
        for (episode, _), (more,) in zip(goes_on, engine.generate(prompts, how_each, 1), strict=True):
            turns = (*episode.answer.turns, _turn(more))
            episode.answer = replace(episode.answer, completion=joined(episode.answer.completion, more), turns=turns)
        live = goes_on


def _seed_of(how: Sampling, place: str) -> int | None:
    """Return a seed of its own for a later turn of an episode."""
    return None if how.sampling_seed is None else random.Random(f"{how.sampling_seed} {place}").getrandbits(62)


def _turn(completion: Completion) -> Message:
    return Message(role="assistant", content=completion.text)


def _observe(episode: Episode, environment: Environment, template: ChatTemplate, most_tokens: int) -> bool:
    """Append what the environment answers; False when the episode is over."""
    answer = episode.answer
    if answer.completion.finish_reason != "stop":
        return False
    try:
        said = environment.step(answer.example, answer.turns)
    except Exception as error:  # noqa: BLE001  an environment is foreign code; one failing episode must not end a run
        say_once(f"the environment failed in an episode, which is left out: {type(error).__name__}: {error}")
        episode.answer = replace(answer, completion=replace(answer.completion, finish_reason="abort"))
        return False
    if said is None:
        return False
    tokens = template.between(answer.example.context, said, answer.example.tools, answer.completion.tokens[-1])
    completion = joined(answer.completion, Completion(prompt_tokens=(), tokens=tuple(tokens)), learned=False)
    if len(completion.tokens) >= most_tokens:
        episode.answer = replace(answer, completion=replace(answer.completion, finish_reason="length"))
        return False
    episode.answer = replace(answer, completion=completion, turns=(*answer.turns, said))
    return True


def joined(first: Completion, more: Completion, *, learned: bool = True) -> Completion:
    """Return `first` with the tokens of `more` behind it; its text is that of the last turn of the model."""
    before = first.learned or (True,) * len(first.tokens)

    def both(name: str) -> tuple[float, ...] | None:
        one = getattr(first, name)
        other = getattr(more, name) if learned else (0.0,) * len(more.tokens)
        return None if one is None or other is None else (*one, *other)

    return replace(
        first,
        tokens=(*first.tokens, *more.tokens),
        text=more.text if learned else first.text,
        logp=both("logp"),
        drawn_logp=both("drawn_logp"),
        learned=(*before, *(learned,) * len(more.tokens)),
        finish_reason=more.finish_reason,
    )


def check_answered(groups: Sequence[Group]) -> None:
    """Raise TrainingError when every episode was lost to errors of the environment."""
    if groups and not any(group.episodes for group in groups):
        raise TrainingError("the environment failed in every episode; see the first error above", code="environment")
