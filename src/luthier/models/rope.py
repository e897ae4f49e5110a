"""Rotary positions stretched to longer sequences than a model was trained on."""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING, Any

from luthier.core.anatomy import plain_model
from luthier.core.errors import ModelError
from luthier.core.log import logger, say_once

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.config.schema import ModelConfig

FILE = "rope.json"
"""What lies beside an adapter that was trained on stretched positions."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def stretch(model: Any, config: ModelConfig) -> None:
    """Stretch rotary positions by the smallest whole factor that makes room for `rope_length` tokens.

    linear (arXiv:2306.15595) divides positions, dynamic NTK raises the base with the length of a sequence, yarn
    (arXiv:2309.00071) and llama3 divide low frequencies only. A model whose context is long enough stays as it is, and
    that is said. Raises ModelError for a model without one table of rotary positions.
    """
    facts = plain_model(model).config.get_text_config()
    kind, now = config.rope_scaling, getattr(facts, "max_position_embeddings", 0) or 0
    rope = getattr(facts, "rope_parameters", None) or {}
    if not rope or any(isinstance(part, dict) for part in rope.values()):
        why = "has a table for each kind of layer" if rope else "has no rotary positions"
        raise ModelError(f"rope_scaling: {kind} does not fit: this model {why}; leave it out", code="model_rope")
    if config.rope_length <= now:
        say_once(f"rope_scaling: {kind} is left out: {config.rope_length} tokens fit this model's {now} positions")
        return
    if rope.get("rope_type", "default") != "default":
        raise ModelError(
            f"rope_scaling: {kind} does not fit: this model's positions are scaled already ({rope['rope_type']}, "
            f"{now} tokens); lower cutoff_len to {now}",
            code="model_rope",
        )
    factor = ceil(config.rope_length / now)
    more = {"yarn": {}, "llama3": _LLAMA3}.get(kind)
    trained = {} if more is None else {"original_max_position_embeddings": now, **more}
    changed = {"rope_parameters": {**rope, "rope_type": kind, "factor": float(factor), **trained}}
    # Dynamic scaling begins behind the positions that were trained, so they must stay known.
    _change(model, changed if kind == "dynamic" else {**changed, "max_position_embeddings": now * factor})
    logger.info("rope: %s by %d, from %d to %d positions", kind, factor, now, now * factor)


def write(model: Any, folder: Path) -> None:
    """Write how positions were stretched beside an adapter, if they were."""
    changed = getattr(plain_model(model), "stretched", None)
    if changed is not None:
        (folder / FILE).write_text(json.dumps(changed, indent=1), encoding="utf-8")


def restore(model: Any, folder: Path) -> None:
    """Stretch positions as they were when the adapter in `folder` was trained."""
    changed = read(folder)
    if changed:
        _change(model, changed)


def read(folder: Path) -> dict[str, Any]:
    """Return the settings of the base model that an adapter was trained with, where they are other than its own."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}; copy the adapter again", code="model_damaged") from error


def _change(model: Any, changed: dict[str, Any]) -> None:
    plain = plain_model(model)
    facts = plain.config.get_text_config()
    for key, value in changed.items():
        setattr(facts, key, value)
    tables = [(name, module) for name, module in plain.named_modules() if hasattr(module, "inv_freq")]
    for name, table in tables:
        above, _, own = name.rpartition(".")
        setattr(plain.get_submodule(above), own, type(table)(config=facts).to(table.inv_freq.device))
    plain.stretched = changed
