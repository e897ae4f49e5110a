"""Another word for a token of a tokenizer: its id stays, so nothing changes in the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


def has(tokenizer: Any, word: str) -> bool:
    """Tell whether `word` is one token."""
    return tokenizer.convert_tokens_to_ids(word) not in (None, tokenizer.unk_token_id)


def rename(tokenizer: Any, word: str, other: str) -> None:
    """Write the special token `word` as `other` from now on, in `tokenizer` itself.

    Raises ModelError for a tokenizer that is not of the fast kind.
    """
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{word} cannot be written {other}: this tokenizer is of the slow kind; take its fast one")
    named = [name for name, token in tokenizer.special_tokens_map.items() if token == word]
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in facts["added_tokens"]:
        if token["content"] == word:
            token["content"] = other
    vocabulary = facts["model"].get("vocab")
    if isinstance(vocabulary, dict) and word in vocabulary:
        vocabulary[other] = vocabulary.pop(word)
    elif isinstance(vocabulary, list):
        facts["model"]["vocab"] = [[other if text == word else text, score] for text, score in vocabulary]
    facts["post_processor"] = _renamed(facts["post_processor"], {word: other})
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(facts))
    for name in named:
        setattr(tokenizer, name, other)


def _renamed(part: Any, words: Mapping[str, str]) -> Any:
    """Return a part of a tokenizer's settings with every text that is a word exchanged."""
    if isinstance(part, dict):
        return {words.get(key, key): _renamed(value, words) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value, words) for value in part]
    return words.get(part, part) if isinstance(part, str) else part
