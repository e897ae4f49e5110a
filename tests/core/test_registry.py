"""Shelves are found whole, whoever looks first."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from luthier.core.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_MODULE = """
import time
from {package} import SHELF

time.sleep(0.05)
SHELF.add({name!r}, {name!r})
SHELF.names()
"""
"""Slow to import, and looks at the shelf that it stands on."""

_BOTH = """
import gc
import threading
import time
from luthier.config.load import json_schema

gc.callbacks.append(lambda *_: time.sleep(0))
gc.set_threshold(200)
failures = []

def look():
    try:
        json_schema()
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=look) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
raise SystemExit("; ".join(failures) or 0)
"""


def test_other_threads_wait_for_the_whole_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shelf_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("first", "second", "third"):
        (package / f"{name}.py").write_text(_MODULE.format(package=package.name, name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    shelf: Registry[str] = Registry("thing", package.name)
    __import__(package.name).SHELF = shelf
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(shelf.names())) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [["first", "second", "third"]] * 4


def test_threads_may_ask_for_the_schema_at_once() -> None:
    """In a process of its own, as validators are kept; threads take turns whenever rubbish is collected."""
    done = subprocess.run([sys.executable, "-c", _BOTH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
