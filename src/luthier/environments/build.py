"""Settings -> an environment."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from luthier.config.parts import build_part
from luthier.core.errors import ConfigError, DependencyError
from luthier.core.registry import ENVIRONMENTS

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.config.rollout import NamedPart
    from luthier.core.protocols import Environment


def build_environment(part: NamedPart, folder: Path | None = None) -> Environment:
    """Return the environment that `part` names: from the shelf, module:Class or FILE.py:Class.

    Paths of the user's own are looked for from here and from `folder`. Raises ConfigError, and DependencyError for a
    package that is missing.
    """
    built = build_part(ENVIRONMENTS, part, folder)
    lacking = [name for name in ("examples", "step") if not callable(getattr(built, name, None))]
    if lacking:
        raise ConfigError(
            f"environment {part.name} has no {' and no '.join(lacking)}: examples() returns the prompts, "
            "step(example, turns) returns what follows an answer, or None"
        )
    for package, extra in getattr(built, "requires", {}).items():
        if importlib.util.find_spec(package) is None:
            raise DependencyError(
                f"environment {part.name} needs the package {package}; run: pip install 'luthier[{extra}]'"
            )
    return built
