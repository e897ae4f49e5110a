"""A folder that `ollama create` takes: a GGUF file and a Modelfile that says how to talk to it.

The syntax is that of Ollama's parser (https://github.com/ollama/ollama, parser/parser.go): a value may stand between
triple quotes and ends at the first line that ends with three of them; nothing in it is escaped; characters that cannot
be printed are lost.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.paths import write_whole
from luthier.export.ollama_template import go_template
from luthier.export.verify.metadata import end_of_turn, stop_ids

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.core.types import Sampling
    from luthier.export.source import Source

MODELFILE = "Modelfile"
MOST_NAME = 80
_THREE = '"""'
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def write_ollama(
    source: Source, gguf: Path, folder: Path, *, system: str | None, parameters: Sampling, context: int
) -> list[str]:
    """Write a Modelfile for `gguf` into `folder`; return sentences about what is not as the model was trained.

    `system`: the text in front of conversations without one; `context`: tokens of the longest conversation that was
    trained on. Raises ModelError when the chat template cannot be expressed at all.
    """
    template = go_template(source.tokenizer)
    notes = list(template.lost)
    lines = [
        f"# {_comment(source.name)}",
        f"# ollama create {ollama_name(source.name)} -f {MODELFILE}",
        *(f"# Not as it was trained: {_comment(note)}" for note in notes),
        f"FROM {_relative(gguf, folder)}",
        f"TEMPLATE {quoted(template.text)}",
        *([f"SYSTEM {quoted(system)}"] if system else []),
        *(f"PARAMETER {name} {value}" for name, value in _parameters(parameters, context).items()),
        *(f"PARAMETER stop {quoted(token)}" for token in stop_tokens(source)),
    ]
    write_whole(folder / MODELFILE, "\n".join(lines) + "\n")
    return notes


def ollama_name(name: str) -> str:
    """Return a name that Ollama takes: letters, digits, dots, dashes and underscores, no two dots in a row.

    >>> ollama_name("My model (v1..2)")
    'my-model-v1.2'
    """
    made = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]+", "-", name)).strip("-.")[:MOST_NAME].strip("-.").lower()
    return made if _NAME.fullmatch(made) else "model"


def stop_tokens(source: Source) -> list[str]:
    """Return the text of every token that ends an answer."""
    ids = {*stop_ids(source), end_of_turn(source.tokenizer)} - {None}
    return [str(token) for token in source.tokenizer.convert_ids_to_tokens(sorted(i for i in ids if i is not None))]


def quoted(text: str) -> str:
    """Return a value as it stands in a Modelfile. Raises ModelError for what cannot stand there."""
    lines = [line.rstrip() for line in text.split("\n")[:-1]]
    printable = all(c.isprintable() or c in "\n\t" for c in text)
    if printable and not any(line.endswith(_THREE) for line in lines):
        return f"{_THREE}{text}{_THREE}"
    if printable and not text.startswith('""') and not any(line.endswith('"') for line in lines):
        return f'"{text}"'
    what = "lines that end with quotes" if printable else "characters that cannot be printed"
    raise ModelError(f"a Modelfile cannot hold this text, which has {what}: {text[:60]!r}; write it without them",
                     code="model_ollama")  # fmt: skip


def _parameters(sampling: Sampling, context: int) -> dict[str, Any]:
    """Return every number that Ollama would otherwise choose itself."""
    return {
        "num_ctx": context,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": -1,
    }


def _relative(gguf: Path, folder: Path) -> str:
    path = os.path.relpath(gguf, folder).replace(os.sep, "/")
    return path if path.startswith("../") else f"./{path}"


def _comment(text: str) -> str:
    return " ".join(text.split())
