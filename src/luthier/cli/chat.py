"""luthier chat."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from luthier.cli.common import AsJson, Overrides, Source, model_config


def chat(
    source: Source,
    overrides: Overrides = None,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with base and tuned model side by side.")] = False,
    message: Annotated[str | None, typer.Option(help="Ask this once and leave; for scripts.")] = None,
    json: AsJson = False,
) -> None:
    """Talk to a model; answers appear as they are written."""
    config = model_config(source, overrides)
    from luthier.cli.show import as_json
    from luthier.workflows.chat import open_conversations

    conversations = open_conversations(config, compare=compare)
    if message is not None:
        answers = {c.name: "".join(c.reply(message)) if json else _say(c, message) for c in conversations}
        if json:
            as_json(message=message, answers=answers)
        return
    print("Empty line or Ctrl-D leaves, /new begins anew, /adapter NAME switches.", file=sys.stderr)
    while text := _ask():
        for conversation in conversations[-1:] if text.startswith("/adapter ") else conversations:
            _answer(conversation, text)


def _answer(conversation: Any, text: str) -> None:
    """Do what a line of a chat asks for."""
    from luthier.core.errors import ModelError

    if text == "/new":
        conversation.forget()
    elif text.startswith("/adapter "):
        try:
            conversation.use(text.removeprefix("/adapter ").strip())
        except ModelError as error:
            print(error, file=sys.stderr)
    else:
        _say(conversation, text)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _say(conversation: Any, text: str) -> str:
    """Print an answer as it grows, under the model's name; return it."""
    print(f"--- {conversation.name}")
    parts: list[str] = []
    for part in conversation.reply(text):
        parts.append(part)
        print(part, end="", flush=True)
    print()
    return "".join(parts)
