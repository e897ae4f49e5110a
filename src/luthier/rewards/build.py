"""Settings -> rewards, everything about them checked before an answer is given."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from luthier.config.parts import build_part, find_source, is_own
from luthier.core.errors import ConfigError, DataError, DependencyError
from luthier.core.log import printable
from luthier.core.registry import REWARDS
from luthier.rewards.grading import NamedReward, distinct
from luthier.rewards.own import own_reward

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from luthier.config.rollout import NamedPart
    from luthier.core.protocols import Environment
    from luthier.core.types import Example


def build_rewards(
    parts: Sequence[NamedPart], environment: Environment | None = None, *, folder: Path | None = None
) -> list[NamedReward]:
    """Return the rewards that `parts` name, or the one that the environment brings where they name none.

    Paths of the user's own are looked for from here and from `folder`. Raises ConfigError listing everything that is
    wrong, and DependencyError for a package that is missing.
    """
    built: list[NamedReward] = []
    problems: list[ConfigError] = []
    for part in parts:
        try:
            built.append(_build(part, folder))
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise ConfigError("\n".join(str(each) for each in problems), code=problems[0].code)
    brought = getattr(environment, "reward", "")
    if not built and brought:
        built.append(NamedReward(brought, 1.0, _ready(REWARDS.get(brought)(), folder)))
    return distinct(built)


def check_columns(rewards: Iterable[NamedReward], examples: Iterable[Example]) -> None:
    """Raise DataError when a reward needs a column that a row lacks, naming the rows' columns."""
    wanted = {column: each.name for each in rewards for column in getattr(each.reward, "columns", ())}
    for example in examples:
        for column, name in wanted.items():
            if column not in example.extra:
                there = ", ".join(printable(each, 40) for each in list(example.extra)[:20]) or "no columns"
                raise DataError(
                    f"{example.origin or 'a row'}: reward {name} needs the column {column!r}, but there are: {there}",
                    code="reward_column",
                )


def _build(part: NamedPart, folder: Path | None) -> NamedReward:
    if is_own(part.name):
        source = find_source(part.name, f"reward {part.name}", folder)
        return NamedReward(source.attribute, part.weight, own_reward(source, part.settings))
    return NamedReward(part.name, part.weight, _ready(build_part(REWARDS, part), folder))


def _ready(reward: Any, folder: Path | None) -> Any:
    """Return the reward once its packages are known to be there and the files that it names are read."""
    for package, extra in getattr(reward, "requires", {}).items():
        if importlib.util.find_spec(package) is None:
            name = REWARDS.name_of(reward)
            raise DependencyError(f"reward {name} needs the package {package}; run: pip install 'luthier[{extra}]'")
    return reward.resolved(folder) if hasattr(reward, "resolved") else reward
