"""The Modelfile that belongs to a tokenizer's chat template, kept with the tokenizer, where scripts look for it."""

from __future__ import annotations

from typing import Any

from luthier.core.errors import ModelError
from luthier.core.log import first_line, say_once
from luthier.export.ollama import quoted
from luthier.export.ollama_template import go_template

FILE = "{__FILE_LOCATION__}"
"""Stands where the GGUF file is not known yet."""
ATTRIBUTE = "_ollama_modelfile"


def keep_modelfile(tokenizer: Any, text: str | None = None) -> None:
    """Keep `text`, else a Modelfile made of the chat template; None, and a line, where Ollama has no words for it."""
    if text is None:
        try:
            text = _draft(tokenizer)
        except ModelError as error:
            say_once(f"no Modelfile: {first_line(error)}")
    setattr(tokenizer, ATTRIBUTE, text)


def _draft(tokenizer: Any) -> str:
    lines = [f"FROM {FILE}", f"TEMPLATE {quoted(go_template(tokenizer).text)}"]
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {quoted(tokenizer.eos_token)}")
    return "\n".join(lines) + "\n"
