"""Conversations, and byte tokenizers with the special tokens of a named template."""

from __future__ import annotations

import json
from typing import Any

from helpers import byte_tokenizer

from luthier.core.types import Message
from luthier.data.template_names import NAMES
from luthier.data.template_shelf import apply_named_template

CALL = {"name": "weather", "arguments": {"city": "苏州 🙂"}}
OTHER = {"name": "weather", "arguments": {"city": "Zürich"}}
_CITY = {"city": {"type": "string", "description": "城市"}}
TOOLS = json.dumps(
    [
        {
            "name": "weather",
            "description": "Wetter für eine Stadt",
            "parameters": {"type": "object", "properties": _CITY, "required": ["city"]},
        }
    ]
)


SYSTEM, ASKED = "Be brief.", "Kö 🙂?"
PROMPT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
"""A system text, a question, and what the byte tokenizer's template makes of them."""


def said(role: str, content: str) -> dict[str, str]:
    """A turn of OpenAI's kind."""
    return {"role": role, "content": content}


def turned(who: str, value: str) -> dict[str, str]:
    """A turn of ShareGPT's kind."""
    return {"from": who, "value": value}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def says(text: str, *calls: dict, reasoning: str = "") -> Message:
    return Message(role="assistant", content=text, tool_calls=calls, reasoning=reasoning)


def tokenizer_for(name: str) -> Any:
    """A byte tokenizer with the special tokens that a template needs, a begin and an end token."""
    tokenizer = byte_tokenizer()
    needed = [token for token in NAMES[name].needs if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "additional_special_tokens": needed})
    tokenizer.chat_template = None
    apply_named_template(tokenizer, name)
    return tokenizer
