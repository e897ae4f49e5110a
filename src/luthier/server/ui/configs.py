"""Settings: looked at without writing anything, and estimated."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import psutil
from fastapi import APIRouter

from luthier.config.convert import as_yaml, flat, flat_yaml
from luthier.config.load import SHELVES, Loaded, dump, json_schema
from luthier.server.ui.failures import Mistaken
from luthier.server.ui.settings import read_settings
from luthier.server.ui.shapes.configs import ConfigLook, ConfigText, Estimate, EstimatePart

if TYPE_CHECKING:
    from luthier.server.ui.shapes.common import Values
    from luthier.server.ui.state import State

ESTIMATE_SECONDS = 180.0


def look(state: State, asked: ConfigText) -> ConfigLook:
    """Return what settings mean, or everything that is wrong with them."""
    try:
        loaded = _read(state, asked)
    except Mistaken as error:
        return ConfigLook(ok=False, problems=error.problems, values=asked.values or {})
    resolved = dump(loaded.config)
    return ConfigLook(
        ok=True,
        problems=[],
        notices=loaded.notices,
        values=given(loaded, resolved),
        resolved=resolved,
        places={f"{s}.{k}": loaded.place(f"{s}.{k}") for s, values in resolved.items() for k in values},
        yaml=flat_yaml(loaded.config),
        command=command_of(loaded),
    )


def given(loaded: Loaded, resolved: Values) -> Values:
    """Return what was said, in the nested form; the names of tuning and objective always."""
    found: Values = {section: {"name": resolved[section]["name"]} for section in SHELVES}
    for dotted in loaded.places:
        section, _, key = dotted.partition(".")
        if key in resolved.get(section, {}):
            found.setdefault(section, {})[key] = resolved[section][key]
    return found


def command_of(loaded: Loaded, word: str = "train") -> str:
    """Return the command line with the same settings, fit for a shell."""
    settings = (f"{key}={as_yaml(value)}" for key, value in flat(loaded.config).items())
    return " ".join(["luthier", word, *map(shlex.quote, settings)])


def _read(state: State, asked: ConfigText) -> Loaded:
    return read_settings(
        state.roots,
        yaml=asked.yaml,
        values=asked.values,
        overrides=asked.overrides,
        allow_remote_code=state.allow_remote_code,
    )


def estimate(state: State, asked: ConfigText) -> Estimate:
    """Return memory and time of a training; takes seconds. Raises Mistaken, LuthierError."""
    loaded = _read(state, asked)
    available = psutil.virtual_memory().available
    settings = {"values": dump(loaded.config)}
    found = state.worker.ask("estimate", ESTIMATE_SECONDS, settings=settings, available=available)
    return Estimate(
        peak_bytes=found["peak_bytes"],
        available_bytes=available,
        fits=found["peak_bytes"] <= available,
        parts=[EstimatePart(name=name, bytes=size) for name, size in found["memory"].items()],
        seconds=found["seconds"],
        steps=found["steps"],
        tokens=found["tokens"],
        disk_bytes=found["checkpoint_bytes"],
        lines=[*found["lines"], *loaded.notices],
        remedies=found["remedies"],
    )


def routes(state: State) -> APIRouter:
    """Look at settings, estimate them."""
    router = APIRouter(tags=["configs"])

    @router.get("/schema", summary="The JSON schema of the nested form of settings")
    def schema() -> dict[str, Any]:
        return json_schema()

    @router.post("/config/look", summary="What settings mean, or all that is wrong with them; nothing is written")
    def config_look(body: ConfigText) -> ConfigLook:
        return look(state, body)

    @router.post("/estimate", summary="Memory, time and disk of a training; takes seconds")
    def config_estimate(body: ConfigText) -> Estimate:
        return estimate(state, body)

    return router
