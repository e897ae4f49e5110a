"""Constrained decoding: JSON of a schema, regular expressions, grammars, one of several texts; by llguidance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from luthier.core.errors import ConfigError, ModelError
from luthier.core.log import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import Tensor

    from luthier.engines.shaping import Guide

_READERS: WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], Any]] = WeakKeyDictionary()
"""llguidance's form of each tokenizer: it takes a second to make."""
_OBJECT = {"type": "object"}


@dataclass(slots=True)
class GrammarGuide:
    """Follows one answer through a grammar. The end of turn is allowed exactly where the grammar may end."""

    matcher: Any
    size: int
    """Entries of a mask."""

    def allowed_V(self) -> Tensor | None:
        """Return which tokens may come next, bool [V]. Raises ModelError where the grammar has become too complex."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self.size].astype(bool))

    def take(self, token: int) -> None:
        """Note the token that came. Raises ModelError for one that was not allowed."""
        self.matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self.matcher.is_error():
            raise ModelError(f"constrained decoding: {first_line(self.matcher.get_error())}", code="model_guide")


def json_guide(
    tokenizer: Any, vocab_size: int, schema: Mapping[str, Any] | None, *, end_ids: Collection[int] = ()
) -> Callable[[], Guide]:
    """Return what makes guides to JSON text of `schema`, any object where that is None.

    `vocab_size`: tokens that the model knows; `end_ids`: tokens that end an answer, the tokenizer's own if empty.
    Raises ConfigError for a schema that cannot be followed.
    """
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(dict(_OBJECT if schema is None else schema))
    except ValueError as error:
        raise _unusable("JSON schema", error) from error
    return _makes(tokenizer, vocab_size, grammar, "JSON schema", end_ids)


def regex_guide(tokenizer: Any, vocab_size: int, pattern: str, *, end_ids: Collection[int] = ()) -> Callable[[], Guide]:
    """Return what makes guides to text that matches `pattern` as a whole. Raises ConfigError for a broken one."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_regex(pattern)
    return _makes(tokenizer, vocab_size, grammar, "regular expression", end_ids)


def grammar_guide(tokenizer: Any, vocab_size: int, lark: str, *, end_ids: Collection[int] = ()) -> Callable[[], Guide]:
    """Return what makes guides to text of a grammar in llguidance's form of Lark.

    Raises ConfigError for a broken one.
    """
    from llguidance import LLMatcher

    return _makes(tokenizer, vocab_size, LLMatcher.grammar_from_lark(lark), "grammar", end_ids)


def choice_guide(
    tokenizer: Any, vocab_size: int, texts: Sequence[str], *, end_ids: Collection[int] = ()
) -> Callable[[], Guide]:
    """Return what makes guides to one of `texts`. Raises ConfigError when there is none."""
    if not texts or not all(texts):
        raise ConfigError(f"a choice needs texts, none of them empty; found {list(texts)}", code="guide")
    return regex_guide(tokenizer, vocab_size, "|".join(re.escape(text) for text in texts), end_ids=end_ids)


def _makes(tokenizer: Any, vocab_size: int, grammar: str, what: str, end_ids: Collection[int]) -> Callable[[], Guide]:
    from llguidance import LLMatcher

    reader = _reader_of(tokenizer, vocab_size, end_ids)
    said = LLMatcher.validate_grammar(grammar, reader)
    if said and not said.startswith("WARNING"):
        raise _unusable(what, said)
    first = LLMatcher(reader, grammar, log_level=0)
    if first.is_error():
        raise _unusable(what, first.get_error())
    # A copy costs less than compiling the grammar again for each answer.
    return lambda: GrammarGuide(first.deep_copy(), vocab_size)


def _reader_of(tokenizer: Any, vocab_size: int, end_ids: Collection[int]) -> Any:
    from llguidance.hf import from_tokenizer

    ends = tuple(sorted(end_ids)) or (tokenizer.eos_token_id,)
    known = _READERS.setdefault(tokenizer, {})
    if (vocab_size, ends) not in known:
        try:
            known[vocab_size, ends] = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(ends))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"answers cannot be constrained with this tokenizer: {first_line(error)}", code="guide"
            ) from error
    return known[vocab_size, ends]


def _unusable(what: str, error: object) -> ConfigError:
    lines = " ".join(str(error).split())
    return ConfigError(f"this {what} cannot be followed: {lines}", code="guide")
