"""Which of llama.cpp's pre-tokenizers splits text as a byte-level tokenizer does.

A pre-tokenizer is a chain of patterns; llama.cpp has a fixed list of chains, each with a name. A tokenizer is matched
by its own definition. (The patterns are those of published tokenizer.json files.)
"""

from __future__ import annotations

from typing import Any

from luthier.core.errors import ModelError

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
_O200K = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_SHORT}?|{_LEAD}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_O200K_TAIL}"
)
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_O200K_TAIL}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
    + "[^\r\n"
    + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
    + "[\r\n]*"
    + r"|\s*"
    + "[\r\n]+"
    + r"|\s+(?!\S)|\s+",
)

CHAINS: dict[str, tuple[Chain, bool]] = {
    "gpt-2": ((GPT2,), False),
    "smollm": ((DIGIT, GPT2), False),
    "llama-bpe": ((_CL100K,), True),
    "dbrx": ((_CL100K,), False),
    "qwen2": ((_QWEN2,), False),
    "gpt-4o": ((_O200K,), False),
    "tekken": ((_TEKKEN,), True),
    "deepseek-v3": (_DEEPSEEK3, False),
}
"""Name in llama.cpp -> patterns, and whether a word that is a token is never taken apart (ignore_merges)."""


def pre_tokenizer(backend: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises ModelError when it has none."""
    found, whole_words = chain_of(backend), bool(backend["model"].get("ignore_merges"))
    for name, (chain, ignores) in CHAINS.items():
        if chain == found and ignores == whole_words:
            return name
    raise ModelError(
        f"llama.cpp has no pre-tokenizer for this tokenizer: it splits by {list(found)}, "
        f"ignore_merges is {whole_words}; export_format: merged works",
        code="tokenizer_unknown",
    )


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
            return [part["pattern"]["Regex"]]
    raise ModelError(
        f"llama.cpp has nothing like this pre-tokenizer: {part}; export_format: merged works", code="tokenizer_unknown"
    )


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
