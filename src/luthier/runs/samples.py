"""Groups of answers in samples.jsonl: read, chosen and put into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from luthier.runs.store import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Group = dict[str, Any]
"""One line: {"step", "prompt", "answer" where one is expected, "completions"}."""


def read_groups(run: Path) -> list[Group]:
    """Return the groups of a run; where a resumed run went back to an earlier step, the later record stands."""
    groups: list[Group] = []
    for group in read_lines(run / "samples.jsonl"):
        if not isinstance(group.get("step"), int) or not isinstance(group.get("completions"), list):
            continue
        if groups and group["step"] < groups[-1]["step"]:
            groups = [earlier for earlier in groups if earlier["step"] < group["step"]]
        groups.append(group)
    return groups


def choose(groups: Sequence[Group], *, step: int | None, order: Literal["best", "worst"] | None) -> list[Group]:
    """Return the groups of a step, or of all steps where they are ordered by reward; without both, of the last step."""
    if step is None and order is None and groups:
        step = max(group["step"] for group in groups)
    chosen = [group for group in groups if step is None or group["step"] == step]
    if order is None:
        return chosen
    graded = [group for group in chosen if mean_reward(group) is not None]
    return sorted(graded, key=lambda group: mean_reward(group) or 0.0, reverse=order == "best")


def mean_reward(group: Group) -> float | None:
    """Return the mean reward of the answers of a group; None where none has one."""
    rewards = [float(c["reward"]) for c in _completions(group) if c.get("reward") is not None]
    return sum(rewards) / len(rewards) if rewards else None


def _completions(group: Group) -> list[dict[str, Any]]:
    """Return the answers, the best one first and those without a reward last."""
    completions = cast("list[dict[str, Any]]", group["completions"])
    return sorted(completions, key=lambda c: (c.get("reward") is None, -float(c.get("reward") or 0.0)))


def as_text(group: Group) -> str:
    """Return a group as lines that a person reads."""
    mean = mean_reward(group)
    heading = f"step {group['step']}, mean reward {_number(mean)}"
    origin = f"  ({group['origin']})" if group.get("origin") else ""
    lines = [heading + origin, _indented(str(group.get("prompt", "")))]
    if group.get("answer") is not None:
        lines.append(f"  expected: {group['answer']}")
    for number, completion in enumerate(_completions(group), 1):
        lines += [f"  [{number}] {_facts(completion)}", _indented(_said(completion), "      ")]
    return "\n".join(lines)


def _facts(completion: dict[str, Any]) -> str:
    rewards = cast("dict[str, Any]", completion.get("rewards") or {})
    parts = ", ".join(f"{name} {_number(value)}" for name, value in rewards.items())
    facts = [
        f"reward {_number(completion.get('reward'))}" + (f" ({parts})" if len(rewards) > 1 else ""),
        f"advantage {_number(completion.get('advantage'))}",
        f"{completion.get('tokens', '?')} tokens",
        {"length": "cut off", "abort": "given up"}.get(str(completion.get("finish_reason")), "ended"),
    ]
    return ", ".join([*facts, *([] if completion.get("learned", True) else ["not learned from"])])


def _said(completion: dict[str, Any]) -> str:
    turns = cast("list[dict[str, Any]]", completion.get("turns") or [])
    said = [f"{turn.get('role', '?')}: {turn.get('content', '')}" for turn in turns]
    return "\n".join(said) if said else str(completion.get("text", ""))


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "missing"


def _indented(text: str, by: str = "  ") -> str:
    return "\n".join(by + line for line in text.splitlines() or [""])
