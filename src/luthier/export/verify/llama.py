"""Ask llama.cpp in a process of its own: when it aborts, that is an error here with its last words, not our end."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from threading import Timer
from typing import TYPE_CHECKING, Any, Literal, Self

from luthier.core.errors import DependencyError
from luthier.core.log import printable

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

Mode = Literal["logits", "serve"]
PACKAGES: dict[Mode, str] = {"logits": "cyllama", "serve": "xllamacpp"}
INSTALL = "pip install 'luthier[gguf]'"
PATIENCE = 600.0
"""Seconds that one request may take."""


class LlamaDied(Exception):
    """The process ended; the message holds its last words."""


class LlamaRefused(Exception):
    """llama.cpp answered with an error."""


def obstacle(mode: Mode) -> str | None:
    """Return why llama.cpp cannot be asked here, or None."""
    package = PACKAGES[mode]
    return None if importlib.util.find_spec(package) else f"package {package} is missing; run: {INSTALL}"


class Llama:
    """A process with one file loaded. Use it as a context manager; raises DependencyError without its package."""

    def __init__(self, path: Path, mode: Mode) -> None:
        missing = obstacle(mode)
        if missing:
            raise DependencyError(missing)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        command = [sys.executable, "-m", "luthier.export.verify.llama_process", mode, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._words}
        self._process: Any = subprocess.Popen(command, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._words.close()

    def ask(self, do: str, **more: Any) -> Any:
        """Return the result of a request. Raises LlamaRefused for an error, LlamaDied when the process ends."""
        return self._ask(do, more)[0]

    def logits(self, ids: list[int], first: int) -> np.ndarray[Any, Any]:
        """Return the logits behind each of `ids` from place `first` on, float32, [N, V]."""
        import numpy as np

        shape, raw = self._ask("logits", {"ids": ids, "first": first})
        return np.frombuffer(raw, dtype=np.float32).reshape(shape)

    def _ask(self, do: str, more: dict[str, Any]) -> tuple[Any, bytes]:
        patience = Timer(PATIENCE, self._process.kill)
        patience.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            head = json.loads(line) if line.endswith(b"\n") else None
            raw = self._process.stdout.read(head.get("bytes", 0)) if head else b""
        except (BrokenPipeError, OSError):
            head, raw = None, b""
        finally:
            patience.cancel()
        if head is None or len(raw) != head.get("bytes", 0):
            raise LlamaDied(self._last_words())
        if "error" in head:
            raise LlamaRefused(printable(head["error"], 300))
        return head["result"], raw

    def _last_words(self) -> str:
        code = self._process.wait()
        size = self._words.seek(0, 2)
        self._words.seek(max(0, size - 4096))
        lines = [line.strip() for line in self._words.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return f"llama.cpp ended {how}; its last words: {printable(' | '.join(lines[-3:]), 400)}"
