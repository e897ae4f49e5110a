"""What a GGUF file says of a tokenizer: tokens, types, merges or scores, special ids, and the chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.core.log import say_once
from luthier.export.gguf.pre_tokenizers import pre_tokenizer
from luthier.export.gguf.special_tokens import special_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.export.gguf.rope import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in llama.cpp."""
_BLANK = "▁"
_NEVER = -1e9
"""Score of a token that no merge makes."""


def vocabulary(tokenizer: Any, rows: int, *, generation: Any = None, facts: Any = None) -> Metadata:
    """Return every key below `tokenizer.` for an embedding of `rows` rows.

    Raises ModelError where llama.cpp has no tokenizer that gives the same ids.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in backend["added_tokens"]}
    kind = _kind_of(backend)
    words = {**_words(backend), **{id_: token["content"] for id_, token in added.items()}}
    _warn_of_surplus(words, rows)
    tokens = [words.get(id_, f"[PAD{id_}]") for id_ in range(rows)]
    types = [_type_of(id_, words, added, kind, backend) for id_ in range(rows)]
    return {
        **_KINDS[kind](backend, tokens, tokenizer),
        "tokenizer.ggml.tokens": [_as_written(word, each, kind) for word, each in zip(tokens, types, strict=True)],
        "tokenizer.ggml.token_type": types,
        **special_tokens(tokenizer, rows, generation=generation, facts=facts),
        **_templates(tokenizer),
    }


def _as_written(word: str, type_: int, kind: str) -> str:
    """Return a token as it stands in the file: llama.cpp writes what users added as it is, blanks as blanks."""
    return word.replace("▁", " ") if type_ == USER_DEFINED and kind != "gpt2" else word


def _kind_of(backend: dict[str, Any]) -> str:
    """Return which of llama.cpp's tokenizers it is: `gpt2`, `llama` or `t5`."""
    model = backend["model"]
    if model["type"] == "Unigram":
        return "t5"
    if model["type"] == "BPE":
        return "llama" if model.get("byte_fallback") else "gpt2"
    raise ModelError(f"a tokenizer of type {model['type']} has no GGUF form; export_format: merged works")


def _words(backend: dict[str, Any]) -> dict[int, str]:
    vocab = backend["model"]["vocab"]
    if isinstance(vocab, dict):
        return {id_: word for word, id_ in vocab.items()}
    return {id_: word for id_, (word, _) in enumerate(vocab)}


def _warn_of_surplus(words: dict[int, str], rows: int) -> None:
    surplus = [words[id_] for id_ in sorted(words) if id_ >= rows]
    if surplus:
        say_once(
            f"{len(surplus)} tokens have no row in the embeddings and are left out of the GGUF file: {surplus[:3]}"
        )


def _type_of(id_: int, words: dict[int, str], added: dict[int, Any], kind: str, backend: dict[str, Any]) -> int:
    if id_ not in words:
        return UNUSED
    if kind != "gpt2" and words[id_] == _unknown(backend):
        return UNKNOWN
    if kind != "gpt2" and _is_byte(words[id_]):
        return BYTE
    if id_ in added:
        return CONTROL if added[id_]["special"] else USER_DEFINED
    return NORMAL


def _unknown(backend: dict[str, Any]) -> str | None:
    model = backend["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return model["unk_token"]


def _is_byte(word: str) -> bool:
    return len(word) == 6 and word.startswith("<0x") and word.endswith(">")


# ---- the three kinds


def _byte_level(backend: dict[str, Any], tokens: list[str], tokenizer: Any) -> Metadata:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer(backend),
        # llama.cpp refuses a file without merges; tokens that are no words merge nothing.
        "tokenizer.ggml.merges": merges or ["\x00 \x00"],
    }


def _sentence_piece(backend: dict[str, Any], tokens: list[str], tokenizer: Any) -> Metadata:
    """Scores are ranks: llama.cpp merges what scores highest, as a merge of a lower number comes first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(backend["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(-ranks[token]) if token in ranks else _NEVER for token in tokens],
        "tokenizer.ggml.add_space_prefix": adds_space(tokenizer),
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }


def _unigram(backend: dict[str, Any], tokens: list[str], tokenizer: Any) -> Metadata:
    scores = dict(backend["model"]["vocab"])
    charsmap = _charsmap(backend["normalizer"])
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(scores.get(token, 0.0)) for token in tokens],
        "tokenizer.ggml.add_space_prefix": adds_space(tokenizer),
        "tokenizer.ggml.remove_extra_whitespaces": _squeezes(backend["normalizer"]),
        **({"tokenizer.ggml.precompiled_charsmap": charsmap} if charsmap else {}),
    }


_KINDS: dict[str, Callable[[dict[str, Any], list[str], Any], Metadata]] = {
    "gpt2": _byte_level,
    "llama": _sentence_piece,
    "t5": _unigram,
}


def _parts(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the links of a chain of normalizers."""
    return [] if node is None else node.get("normalizers", [node])


def adds_space(tokenizer: Any) -> bool:
    """Return whether text gets a blank in front of it, as the tokenizer does it.

    llama.cpp puts it in front of all text and behind special tokens, or nowhere. A tokenizer that does it at the very
    beginning only is followed where it is used: with a template that is in chats, which begin with a special token.
    """
    first, mark = tokenizer.tokenize("x")[0], tokenizer.eos_token or tokenizer.bos_token
    begins = first.startswith(_BLANK)
    if not mark:
        return begins
    behind = tokenizer.tokenize(f"{mark}x")[1].startswith(_BLANK)
    if begins != behind:
        say_once(
            "the tokenizer puts a blank in front of a text but not behind special tokens, which llama.cpp cannot: the "
            f"GGUF file is right {'in chats' if tokenizer.chat_template else 'at the beginning of a text'}"
        )
    return behind if tokenizer.chat_template else begins


def _charsmap(normalizer: dict[str, Any] | None) -> list[int]:
    import base64

    for part in _parts(normalizer):
        if part["type"] == "Precompiled":
            return list(base64.b64decode(part["precompiled_charsmap"]))
    return []


def _squeezes(normalizer: dict[str, Any] | None) -> bool:
    return any(part["type"] == "Replace" and part["pattern"] == {"Regex": " {2,}"} for part in _parts(normalizer))


def _templates(tokenizer: Any) -> Metadata:
    """The chat template; where there are several, the default one and the others by name."""
    found = tokenizer.chat_template
    if found is None:
        return {}
    if isinstance(found, str):
        return {"tokenizer.chat_template": found}
    others = {f"tokenizer.chat_template.{name}": text for name, text in found.items() if name != "default"}
    names = {"tokenizer.chat_templates": [name for name in found if name != "default"]} if others else {}
    default = {"tokenizer.chat_template": found["default"]} if "default" in found else {}
    return {**default, **names, **others}
