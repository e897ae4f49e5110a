"""Groups of answers with their rewards, as lines of samples.jsonl."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.runs.store import RunStore
    from luthier.training.episodes import Episode, Group


def write_groups(run: RunStore, groups: Sequence[Group], step: int) -> None:
    """Append one line for each group of a step."""
    for group in groups:
        example = group.row.example
        expected = example.extra.get("answer")
        run.sample(
            step=step,
            origin=example.origin,
            prompt="\n".join(f"{message.role}: {message.content}" for message in example.context),
            **({} if expected is None else {"answer": expected}),
            completions=[_plain(episode) for episode in group.episodes],
        )


def _plain(episode: Episode) -> dict[str, object]:
    completion, turns = episode.answer.completion, episode.answer.turns
    return {
        "text": completion.text,
        **({"turns": [turn.as_dict() for turn in turns]} if len(turns) > 1 else {}),
        "tokens": len(completion.tokens),
        "finish_reason": completion.finish_reason,
        "version": completion.version,
        "rewards": episode.rewards,
        "reward": episode.reward,
        "advantage": episode.advantage,
        "learned": episode.segment is not None,
    }
