"""Which tokens begin and end what a model writes: read from what the tokenizer, the settings and the template do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.log import say_once

if TYPE_CHECKING:
    from luthier.export.gguf.rope import Metadata

_MARK = "⟨answer⟩"
_NAMED_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>"}
    | {"<|eom_id|>", "<EOT>", "<|end_of_text|>", "<\uff5cend▁of▁sentence\uff5c>", "<eos>"}
)
"""Tokens that llama.cpp ends an answer with because of what they are called."""


def special_tokens(tokenizer: Any, rows: int, *, generation: Any = None, facts: Any = None) -> Metadata:
    """Return ids and flags of special tokens. A token behind the last row does not exist."""
    end = tokenizer.eos_token_id
    turn, message = _places(tokenizer, generation)
    # Without a first token llama.cpp takes one of its own, a comma for most.
    begin = getattr(facts, "bos_token_id", None) if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = {
        "bos_token_id": begin,
        "eos_token_id": end,
        "eot_token_id": turn,
        "eom_token_id": message,
        "padding_token_id": tokenizer.pad_token_id,
        "unknown_token_id": tokenizer.unk_token_id,
    }
    begins, ends = frame(tokenizer)
    return {
        **{f"tokenizer.ggml.{key}": id_ for key, id_ in ids.items() if id_ is not None and id_ < rows},
        "tokenizer.ggml.add_bos_token": begins,
        "tokenizer.ggml.add_eos_token": ends,
    }


def _places(tokenizer: Any, generation: Any) -> tuple[int | None, int | None]:
    """Return the ends of a turn and of a message: with the end of a text all places that a file has for stops."""
    end, turn = tokenizer.eos_token_id, end_of_turn(tokenizer)
    names = tokenizer.get_vocab()
    known = {names[name] for name in _NAMED_ENDS & names.keys()}
    left = [id_ for id_ in stop_ids(tokenizer, generation) if id_ not in (end, turn)]
    # Those that llama.cpp knows by their names need no place.
    left.sort(key=lambda id_: id_ in known)
    message = names.get("<|eom_id|>")
    if message is None and left:
        message = left.pop(0)
    if turn is None or (turn == end and left and left[0] not in known):
        turn = left.pop(0) if left else end
    lost = tokenizer.convert_ids_to_tokens([id_ for id_ in left if id_ not in known])
    if lost:
        say_once(f"a GGUF file has no place for more than three ends of an answer; left out: {', '.join(lost)}")
    return turn, message


def stop_ids(tokenizer: Any, generation: Any) -> list[int]:
    """Return every id that ends an answer in transformers, those of the generation settings first."""
    declared = getattr(generation, "eos_token_id", None)
    found = declared if isinstance(declared, list) else [declared]
    return list(dict.fromkeys(id_ for id_ in [*found, tokenizer.eos_token_id] if id_ is not None))


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that the template puts behind an answer, or None."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # noqa: BLE001  a template may refuse such a dialogue in any way
        return None
    behind = tokenizer.encode(text.rpartition(_MARK)[2], add_special_tokens=False)
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id_ for id_ in behind if id_ in special), None)


def frame(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether the tokenizer puts its first and its last token around a text."""
    ids, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    begins = len(ids) > len(bare) and ids[0] == tokenizer.bos_token_id
    return begins, len(ids) > len(bare) and ids[-1] == tokenizer.eos_token_id
