"""Verify an Ollama folder: the Modelfile against the chat template and the model, and Ollama itself where it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.progress import parts
from luthier.export.ollama import MODELFILE, stop_tokens
from luthier.export.ollama_template import MUST, compare
from luthier.export.verify.chats import Chats
from luthier.export.verify.questions import QUESTIONS
from luthier.export.verify.report import Check, Report, guarded, not_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.export.source import Source

NEEDED = ("num_ctx", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "stop")
"""Without them Ollama chooses, and not what a model was trained with."""
NUM_QUESTIONS = 5
PATIENCE = 600
_COMMANDS = frozenset(("from", "template", "system", "parameter", "license", "message", "adapter"))


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says."""

    commands: tuple[tuple[str, str], ...]
    """Name, for a parameter that of the parameter, and value."""
    notes: tuple[str, ...]
    """Comments."""

    def value(self, name: str) -> str | None:
        """Return the last value of a command."""
        return next((value for each, value in reversed(self.commands) if each == name), None)

    def values(self, name: str) -> list[str]:
        """Return every value of a command."""
        return [value for each, value in self.commands if each == name]


def read_modelfile(text: str) -> Modelfile:
    """Return what Ollama reads in a Modelfile. Raises ValueError for what it refuses."""
    commands: list[tuple[str, str]] = []
    notes: list[str] = []
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("#"):
            notes.append(line.strip().removeprefix("#").strip())
            continue
        name, _, value = line.strip().partition(" ")
        if name.lower() not in _COMMANDS:
            raise ValueError(f"{name[:20]!r} is no command of a Modelfile")
        value = line.lstrip()[len(name) + 1 :]
        name = name.lower()
        if name == "parameter":
            name, _, value = value.partition(" ")
        while (done := _unquoted(value.strip())) is None:
            more = next(lines, None)
            if more is None:
                raise ValueError(f"the value of {name} has no end")
            value += more
        commands.append((name, "".join(c for c in done if c.isprintable() or c in "\n\t\r")))
    if not any(name == "from" for name, _ in commands):
        raise ValueError("there is no FROM")
    return Modelfile(tuple(commands), tuple(notes))


def _unquoted(text: str) -> str | None:
    """Return a value without its quotes; None where it goes on."""
    for mark in ('"""', '"'):
        if text.startswith(mark):
            whole = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : -len(mark)] if whole else None
    return text


@parts(3)
def verify_ollama(folder: Path, source: Source) -> Report:
    """Hold an Ollama folder against the model that it was made from."""
    limit = "Ollama can read it"
    try:
        file = read_modelfile((folder / MODELFILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Report(folder.name, (Check("Modelfile", False, str(error), limit),))
    checks = (
        guarded("Modelfile", limit, lambda: check_modelfile(folder, file, source)),
        guarded("Ollama's template", "", lambda: check_go_template(file, source)),
        guarded("Ollama answers", "", lambda: check_ollama(folder)),
    )
    return Report(folder.name, checks)


def check_modelfile(folder: Path, file: Modelfile, source: Source) -> Check:
    """See that the weights are there under a relative name, and every parameter and end token is written."""
    limit = "FROM a file beside it by a relative path; every parameter that Ollama would choose, and every end token"
    origin = file.value("from") or ""
    wrong = [] if (folder / origin).is_file() and not Path(origin).is_absolute() else [f"FROM {origin} is no such file"]
    wrong += [f"PARAMETER {name} is missing" for name in NEEDED if not file.values(name)]
    wrong += [f"PARAMETER stop {token} is missing" for token in stop_tokens(source) if token not in file.values("stop")]
    wrong += [f"PARAMETER {name} is no number" for name in NEEDED[:-1] if not _is_number(file.value(name) or "0")]
    numbers = {"commands": len(file.commands), "wrong": len(wrong)}
    return Check("Modelfile", not wrong, wrong[0] if wrong else f"{len(file.commands)} commands", limit, numbers)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d*)?([eE][-+]?\d+)?", text) is not None


def check_go_template(file: Modelfile, source: Source) -> Check:
    """Render every case with our reader of Go templates, and compare with the chat template's text."""
    limit = "the chat template's text for one turn, many turns, and every case but what its comments say is lost"
    faults = compare(file.value("template") or "", Chats(source.tokenizer))
    said = " ".join(" ".join(file.notes).split())
    silent = {case: why for case, why in faults.items() if case in MUST or " ".join(why.split()) not in said}
    numbers = {"differ": len(faults), "not_said": len(silent)}
    if silent:
        case, fault = next(iter(silent.items()))
        return Check("Ollama's template", False, f"{len(silent)} cases differ and no comment says so; {case}: {fault}",
                     limit, numbers)  # fmt: skip
    found = f"{len(faults)} cases differ, as its comments say" if faults else "every case is equal"
    return Check("Ollama's template", True, found, limit, numbers)


def check_ollama(folder: Path, questions: Sequence[str] = QUESTIONS[:NUM_QUESTIONS]) -> Check:
    """Create the model under a name of its own, ask it at temperature 0, and remove it."""
    limit = f"it is created, answers {len(questions)} questions without an end token in the text, and is removed"
    program = shutil.which("ollama")
    if program is None:
        return not_done("Ollama answers", "there is no program called ollama on the PATH", limit)
    file = read_modelfile((folder / MODELFILE).read_text(encoding="utf-8"))
    name, plain = f"luthier-check-{uuid.uuid4().hex[:8]}", folder / f".{MODELFILE}.{uuid.uuid4().hex[:8]}"
    text = (folder / MODELFILE).read_text(encoding="utf-8")
    plain.write_text(f"{text}PARAMETER temperature 0\nPARAMETER num_predict 32\n", encoding="utf-8")
    try:
        _ollama(program, "create", name, "-f", str(plain))
        answers = [_ollama(program, "run", name, question) for question in questions]
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [type(error).__name__]
        return Check("Ollama answers", False, f"ollama fails: {said[-1]}", limit)
    finally:
        plain.unlink(missing_ok=True)
        subprocess.run([program, "rm", name], capture_output=True, timeout=PATIENCE, check=False)
    empty = sum(not answer.strip() for answer in answers)
    visible = [token for token in file.values("stop") for answer in answers if token in answer]
    numbers = {"questions": len(answers), "empty": empty, "visible": len(visible)}
    found = f"{visible[0]} stands in an answer" if visible else f"{len(answers) - empty} of {len(answers)} answered"
    return Check("Ollama answers", not visible and not empty, found, limit, numbers)


def _ollama(program: str, *words: str) -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return done.stdout
