"""Which of llama.cpp's pre-tokenizers splits text as a byte-level tokenizer does.

A pre-tokenizer is a chain of patterns; llama.cpp has a fixed list of chains, each with a name. A tokenizer is matched
by its own definition. (The patterns are those of published tokenizer.json files.)
"""

from __future__ import annotations

import re
from typing import Any

from luthier.core.errors import ModelError
from luthier.core.log import say_once

Chain = tuple[str, ...]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What tokenizers' ByteLevel splits by."""
DIGIT = r"\p{N}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD, _O200K_TAIL = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_SHORT}|{_WORDS}|\p{{N}}|{_TAIL}"
_O200K = rf"{_LEAD}{_UPPER}*{_LOWER}+{_SHORT}?|{_LEAD}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_O200K_TAIL}"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_O200K_TAIL}"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ\u30a0-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK = (r"[\r\n]", r"\s?[letters]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _CJK, DIGIT)  # noqa: RUF001
_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, DIGIT)

CHAINS: dict[str, tuple[Chain, bool]] = {
    "gpt-2": ((GPT2,), False),
    "smollm": ((DIGIT, GPT2), False),
    "llama-bpe": ((_CL100K,), True),
    "dbrx": ((_CL100K,), False),
    "qwen2": ((_QWEN2,), False),
    "gpt-4o": ((_O200K,), False),
    "tekken": ((_TEKKEN,), True),
    "deepseek-llm": (_DEEPSEEK, False),
    "deepseek-coder": (_CODER, False),
    "deepseek-v3": (_DEEPSEEK3, False),
}
"""Name in llama.cpp -> patterns, and whether a word that is a token is never taken apart (ignore_merges)."""
_SPELLINGS = {
    "\r": r"\r",
    "\n": r"\n",
    "'(?i:[sdmt]|ll|ve|re)": _SHORT,
    r"]?+\p{L}": r"]?\p{L}",
    r"]++[\r\n]": r"]+[\r\n]",
    r"\s*[\r\n]|": r"\s*[\r\n]+|",
    r"\s++$|": "",
}
"""Other ways to write the same: what is possessive there has nothing to give back."""
NEAR = {
    "gpt-4o": "marks that combine with a letter (Thai, Devanagari) and capitals beyond ASCII",
    "tekken": "marks that combine with a letter (Thai, Devanagari) and capitals beyond ASCII",
}
"""Where llama.cpp's own form of the patterns is known to split some text otherwise."""


def pre_tokenizer(backend: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises ModelError when it has none."""
    found, whole_words = chain_of(backend), bool(backend["model"].get("ignore_merges"))
    alike = {ignores: name for name, (chain, ignores) in CHAINS.items() if chain == found}
    if whole_words in alike:
        return _noted(alike[whole_words])
    if alike and _merges_make_every_word(backend["model"]):
        return _noted(alike[not whole_words])
    raise ModelError(
        f"llama.cpp has no pre-tokenizer for this tokenizer: it splits by {list(found)}, "
        f"ignore_merges is {whole_words}; export_format: merged works",
        code="tokenizer_unknown",
    )


def _noted(name: str) -> str:
    if name in NEAR:
        say_once(f"llama.cpp's pre-tokenizer {name} splits otherwise: {NEAR[name]}; plain text has equal ids")
    return name


def _merges_make_every_word(model: dict[str, Any]) -> bool:
    """Return whether words that are tokens are never taken apart anyway: then ignore_merges changes nothing."""
    from tokenizers import Tokenizer, models

    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    plain = Tokenizer(models.BPE(model["vocab"], [(left, right) for left, right in split], ignore_merges=False))
    words = list(model["vocab"])
    return all(len(made.ids) == 1 for made in plain.encode_batch(words, add_special_tokens=False))


def chain_of(backend: dict[str, Any]) -> Chain:
    """Return the patterns by which text is split, in order. Raises ModelError for what is no pattern."""
    _check_normalizer(backend["normalizer"])
    return tuple(pattern for part in _parts(backend["pre_tokenizer"]) for pattern in _patterns(part))


def _parts(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    if node is None:
        return []
    return [part for link in node.get("pretokenizers", [None]) for part in (_parts(link) if link else [node])]


def _patterns(part: dict[str, Any]) -> list[str]:
    if part["type"] == "ByteLevel" and not part["add_prefix_space"]:
        return [GPT2] if part["use_regex"] else []
    if part["type"] == "Digits" and part["individual_digits"]:
        return [DIGIT]
    if part["type"] == "Split" and "Regex" in part["pattern"]:
        isolated = part["behavior"] == "Isolated" and not part["invert"]
        # What removes everything but the matches keeps what isolates them, when all text matches.
        if isolated or (part["behavior"] == "Removed" and part["invert"]):
            return [_spelled(part["pattern"]["Regex"])]
    raise ModelError(
        f"llama.cpp has nothing like this pre-tokenizer: {part}; export_format: merged works", code="tokenizer_unknown"
    )


def _spelled(pattern: str) -> str:
    """Write a pattern as the table does."""
    for other, ours in _SPELLINGS.items():
        pattern = pattern.replace(other, ours)
    # Every letter that has two cases, range by range.
    return re.sub(r"^\\s\?\[A-Za-zµÀ-Ö[^\]]*\]\+$", lambda _: r"\s?[letters]+", pattern)


def _check_normalizer(normalizer: dict[str, Any] | None) -> None:
    """Text goes into llama.cpp's byte-level tokenizer as it is; composing accents (NFC) is left to whoever sends it."""
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    unlike = [part["type"] for part in parts if part["type"] != "NFC"]
    if unlike:
        raise ModelError(
            f"llama.cpp does not normalize text as this tokenizer does ({', '.join(unlike)}); "
            "export_format: merged works",
            code="tokenizer_unknown",
        )
