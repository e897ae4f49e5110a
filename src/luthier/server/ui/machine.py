"""This machine: what is used of it now, and what it has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import TYPE_CHECKING, Any

import psutil
from fastapi import APIRouter

from luthier.core.masking import mask_text
from luthier.server.ui.failures import Refused
from luthier.server.ui.shapes.common import Check, Doctor, Machine

if TYPE_CHECKING:
    from luthier.server.ui.state import State

DOCTOR_SECONDS = 120.0
DOCTOR_KEPT_SECONDS = 30.0
DEVICES_KEPT_SECONDS = 10.0
PACKAGES = (
    "luthier",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "gguf",
    "fastapi",
    "starlette",
    "uvicorn",
    "h11",
    "pydantic",
    "numpy",
    "pyarrow",
    "psutil",
    "PyYAML",
    "Jinja2",
    "typer",
)
_OF_THE_PAGE = {"svelte": "MIT", "uPlot": "MIT"}
"""What the page itself contains -> licence."""


def routes(state: State) -> APIRouter:
    """Return the routes of the machine."""
    router, doctor, devices = APIRouter(tags=["machine"]), _Doctor(), _Devices()

    @router.get("/machine", summary="What is used now")
    def machine() -> Machine:
        memory, disk = psutil.virtual_memory(), shutil.disk_usage(state.roots.runs)
        return Machine(
            memory_total=memory.total,
            memory_available=memory.available,
            disk_total=disk.total,
            disk_free=disk.free,
            processors=len(os.sched_getaffinity(0)),
            load=min(1.0, psutil.cpu_percent() / 100),
            devices=devices.names(),
        )

    @router.get("/doctor", summary="What this machine has, what is usable and why not")
    def show_doctor() -> Doctor:
        return Doctor(checks=doctor.checks(), packages=_packages(), licences=_licences())

    psutil.cpu_percent()
    return router


class _Doctor:
    """Asks `luthier doctor`, which loads what this process never does; one at a time, and not too often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[Check] = []
        self._at = -DOCTOR_KEPT_SECONDS

    def checks(self) -> list[Check]:
        with self._lock:
            if time.monotonic() > self._at + DOCTOR_KEPT_SECONDS:
                self._known, self._at = _ask_doctor(), time.monotonic()
            return self._known


def _ask_doctor() -> list[Check]:
    command = [sys.executable, "-m", "luthier", "doctor", "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=DOCTOR_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["checks"]
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
        raise Refused(500, "doctor", f"luthier doctor did not answer: {type(error).__name__}") from error
    return [Check.model_validate({key: mask_text(str(value)) for key, value in each.items()}) for each in found]


class _Devices:
    """Names of accelerators, as their own tool tells them; none where it is not there."""

    def __init__(self) -> None:
        self._known: list[str] = []
        self._at = -DEVICES_KEPT_SECONDS

    def names(self) -> list[str]:
        if time.monotonic() > self._at + DEVICES_KEPT_SECONDS:
            self._known, self._at = _ask_devices(), time.monotonic()
        return self._known


def _ask_devices() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.used,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _licences() -> dict[str, str]:
    return {**{name: _licence(name) for name in _packages()}, **_OF_THE_PAGE}


def _licence(name: str) -> str:
    facts: Any = metadata(name)
    told = facts.get("License-Expression") or facts.get("License") or ""
    kinds = [each.rpartition(" :: ")[2] for each in facts.get_all("Classifier") or [] if each.startswith("License ::")]
    return told.splitlines()[0][:80] if told.strip() else ", ".join(kinds)
