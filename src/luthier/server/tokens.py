"""Single tokens as clients see them: their text, their bytes, and how probable they were."""

from __future__ import annotations

import codecs
import json
import re
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from luthier.server.replies import TextLogprobs, TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.engines.shaping import ScoredToken

_LEAST = -9999.0
"""Stands for a probability of zero: JSON has no infinity."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@lru_cache(maxsize=1)
def _bytes_of_letters() -> dict[str, int]:
    """Return the byte behind each letter of byte-level vocabularies: printable bytes are themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Place:
    """Where the next token of a text begins, in characters; several tokens may share one."""

    def __init__(self) -> None:
        self.characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def move(self, data: bytes) -> None:
        """Go on behind a token."""
        self.characters += len(self._decoder.decode(data))


class TokenTexts:
    """Knows the text of each token of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self.silent = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        """Tokens that steer the model and have no text."""

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in json.dumps(json.loads(self._tokenizer.backend_tokenizer.to_str()).get("decoder"))

    @cached_property
    def longest(self) -> int:
        """Return the most characters that one token stands for; a text has no fewer tokens than this says."""
        return max(map(len, self._tokenizer.get_vocab()))

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that a token stands for; several tokens may share a character."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._byte_level:
            letters = _bytes_of_letters()
            return bytes(letters[c] for c in piece) if all(c in letters for c in piece) else piece.encode()
        one = _BYTE.fullmatch(piece)
        return bytes([int(one[1], 16)]) if one else piece.replace("▁", " ").encode()

    def text_of(self, token: int) -> str:
        """Return the text of a token, with a mark where a character is cut."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def scored(self, token: ScoredToken) -> TokenLogprob:
        """Return a token as chats report it."""
        return TokenLogprob(
            **self._one(token.token, token.logp).model_dump(), top_logprobs=[self._one(*each) for each in token.top]
        )

    def _one(self, token: int, logp: float) -> TopLogprob:
        data = self.bytes_of(token)
        return TopLogprob(token=data.decode("utf-8", "replace"), logprob=max(logp, _LEAST), bytes=list(data))

    def column(self, tokens: Sequence[ScoredToken | int], place: Place, *, top: bool) -> TextLogprobs:
        """Return tokens as completions report them, from a place on; a bare number is a token without a probability."""
        found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[] if top else None, text_offset=[])
        for token in tokens:
            bare = isinstance(token, int)
            data = self.bytes_of(token if bare else token.token)
            found.tokens.append(data.decode("utf-8", "replace"))
            found.token_logprobs.append(None if bare else max(token.logp, _LEAST))
            if found.top_logprobs is not None:
                best = None if bare else {self.text_of(i): max(logp, _LEAST) for i, logp in reversed(token.top)}
                found.top_logprobs.append(best)
            found.text_offset.append(place.characters)
            place.move(data)
        return found
