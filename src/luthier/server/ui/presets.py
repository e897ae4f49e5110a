"""Starts that fit this machine: a try of minutes, a balanced one, and one that watches itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import psutil
from fastapi import APIRouter, Query

from luthier.core.errors import LuthierError
from luthier.core.registry import OBJECTIVES
from luthier.server.ui.form import Language, words
from luthier.server.ui.models import BYTES_OF_A_TRAINING, BYTES_PER_PARAMETER, look_at
from luthier.server.ui.shapes.configs import Preset

if TYPE_CHECKING:
    from luthier.server.ui.shapes.common import Values
    from luthier.server.ui.state import State

USUAL_PARAMETERS = 1_000_000_000
"""Of a model whose size is not known."""
ROWS_OF_A_STEP = 16
_BATCHES = ((24e9, 8), (10e9, 4), (4e9, 2))
"""Free bytes beside the weights -> rows of a forward pass."""
_ABOUT: dict[str, str] = {
    "try": "A few steps on a few short rows, to see that model, data and method go together.",
    "balanced": "Three passes over the rows, {batch} at a time and {rows} a step, cut at {cutoff} tokens{more}.",
    "careful": "Fewer passes, some rows held out, evaluated while training; the best checkpoint is the result{more}.",
    "quantized": "; frozen weights in 4 bits, because memory is short",
    "recomputed": "; activations are computed again, because memory is short",
}
Name = Literal["try", "balanced", "careful"]


def presets(state: State, model: str, objective: str, language: Language) -> list[Preset]:
    """Return the presets for a model and an objective on this machine. Raises ConfigError for an unknown objective."""
    kind: Any = OBJECTIVES.get(objective)()
    total = psutil.virtual_memory().total
    parameters = _parameters(state, model)
    weights = parameters * BYTES_PER_PARAMETER + BYTES_OF_A_TRAINING
    quantized, recomputed = weights > 0.8 * total, weights > 0.4 * total
    free = total - (weights / 3 if quantized else weights)
    batch = next((rows for least, rows in _BATCHES if free > least), 1)
    cutoff = 2048 if free > _BATCHES[1][0] else 1024
    memory: Values = {}
    if quantized:
        memory["model"] = {"quantization": "nf4"}
        memory["tuning"] = {"name": "lora"}
    if recomputed:
        memory["train"] = {"gradient_checkpointing": True}
    said = _ABOUT if language == "en" else words(language)["presets"]
    more = said["quantized"] * quantized + said["recomputed"] * recomputed
    facts = {"batch": batch, "rows": ROWS_OF_A_STEP, "cutoff": cutoff, "more": more}
    rollouts = "rollouts" in kind.needs
    return [
        Preset(name=name, about=said[name].format(**facts), values=_joined(memory, values))
        for name, values in _values(batch, cutoff, rollouts=rollouts).items()
    ]


def _values(batch: int, cutoff: int, *, rollouts: bool) -> dict[Name, Values]:
    steps = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": ROWS_OF_A_STEP // batch}
    usual = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "logging_steps": 1}
    watched = {
        "eval_strategy": "steps",
        "eval_steps": 50,
        "save_steps": 50,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "early_stopping_steps": 4,
    }
    found: dict[Name, Values] = {
        "try": {
            "data": {"cutoff_len": min(512, cutoff), "max_samples": 200},
            "train": {
                "max_steps": 20, "per_device_train_batch_size": min(2, batch), "gradient_accumulation_steps": 1,
                "logging_steps": 1,
            },
        },
        "balanced": {"data": {"cutoff_len": cutoff}, "train": {"num_train_epochs": 3.0, **steps, **usual}},
        "careful": {
            "data": {"cutoff_len": cutoff, "val_size": 0.05},
            "train": {"num_train_epochs": 2.0, **steps, **usual, **watched},
        },
    }  # fmt: skip
    if rollouts:
        found["try"]["train"]["max_steps"] = 5
        found["try"]["rollout"] = {"num_generations": 4, "max_completion_length": 128}
        for name in ("balanced", "careful"):
            found[name]["rollout"] = {"num_generations": 8, "max_completion_length": 512}
            found[name]["train"]["num_train_epochs"] = 1.0
    return found


def _joined(first: Values, second: Values) -> Values:
    return {section: {**first.get(section, {}), **second.get(section, {})} for section in {**first, **second}}


def _parameters(state: State, model: str) -> int:
    try:
        row = look_at(state.roots, model) if model else None
    except LuthierError:  # not here yet, or nothing that can be looked at
        row = None
    if row is None or not (row.parameters or row.bytes):
        return USUAL_PARAMETERS
    return row.parameters or 2 * (row.bytes or 0)  # of packed files, four bits a weight


def routes(state: State) -> APIRouter:
    """Show presets."""
    router = APIRouter(tags=["configs"])

    @router.get("/presets", summary="Starts that fit this machine, with their values")
    def show(
        model: Annotated[str, Query(max_length=1000)] = "",
        objective: Annotated[str, Query(max_length=100, pattern=r"^[\w+]*$")] = "sft",
        language: Language = "en",
    ) -> list[Preset]:
        return presets(state, model, objective or "sft", language)

    return router
