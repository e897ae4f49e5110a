"""Compare the tokenizer inside a file, as llama.cpp reads it, with the one of transformers."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

from luthier.core.log import printable
from luthier.export.verify.llama import LlamaDied
from luthier.export.verify.report import Check, not_done
from luthier.export.verify.torture import LONG, added, characters, plain_texts, torture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luthier.export.verify.llama import Llama

LIMIT = "equal ids for every text, and equal text for every list of ids"


def check_tokenizer(server: Llama, tokenizer: Any, pre: str = "", rows: Sequence[str] = ()) -> Check:
    """Compare ids of texts, and texts of ids. `pre`: the file's pre-tokenizer; `rows`: texts of the training data.

    What llama.cpp is known to do otherwise with every file is counted and said, and is no fault of this one.
    """
    groups = {"plain": [*torture(tokenizer), *rows], "added": added(tokenizer), "characters": characters(tokenizer)}
    numbers: dict[str, float] = {}
    wrong: list[str] = []
    known: Counter[str] = Counter()
    for group, texts in groups.items():
        ours = encode(tokenizer, texts)
        theirs = server.ask("tokenize", texts=texts, add_special=False)
        other = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        reasons = {i: explained(server, texts[i], ours[i], pre) for i in other}
        known.update(reason for reason in reasons.values() if reason)
        faults = [_ids_differ(texts[i], ours[i], theirs[i]) for i, reason in reasons.items() if reason is None]
        again = _texts_differ(server, tokenizer, [ids for ids in ours if ids])
        numbers |= {group: len(texts), f"{group}_differ": len(faults), f"{group}_decoded_differ": len(again)}
        wrong += faults[:1] + again[:1]
    broken = _streams_badly(server, groups["plain"])
    wrong += broken[:1]
    numbers |= {"streamed_differ": len(broken), "known_differ": known.total()}
    count = sum(map(len, groups.values()))
    told = "".join(f"; llama.cpp {reason} ({number} texts)" for reason, number in known.items())
    if wrong:
        total = int(sum(value for key, value in numbers.items() if key.endswith("differ") and key != "known_differ"))
        return Check("tokenizer", False, f"{total} of {count} texts differ; {wrong[0]}{told}", LIMIT, numbers)
    return Check("tokenizer", True, f"{count} texts are equal in both directions{told}", LIMIT, numbers)


# ---- what llama.cpp does otherwise with every file of a kind


def explained(server: Llama, text: str, ours: list[int], pre: str) -> str | None:
    """Return what llama.cpp is known to do that makes the ids of a text differ, or None."""
    return next((reason for reason, is_so in _KNOWN.items() if is_so(server, text, ours, pre)), None)


def _composes(server: Llama, text: str, ours: list[int], pre: str) -> bool:
    composed = unicodedata.normalize("NFC", text)
    return composed != text and server.ask("tokenize", texts=[composed], add_special=False)[0] == ours


def _looks_special(server: Llama, text: str, ours: list[int], pre: str) -> bool:
    return server.ask("tokenize", texts=[text], add_special=False, parse_special=False)[0] == ours


def _second_blank(server: Llama, text: str, ours: list[int], pre: str) -> bool:
    return text.startswith(" ") and server.ask("tokenize", texts=[text[1:]], add_special=False)[0] == ours


def _splits_scripts(server: Llama, text: str, ours: list[int], pre: str) -> bool:
    unusual = any(unicodedata.category(c)[0] == "M" or (ord(c) > 127 and c.isalpha()) for c in text)
    return pre in _ASCII_PATTERNS and unusual and _same_text(server, text, ours)


def _tilde(server: Llama, text: str, ours: list[int], pre: str) -> bool:
    return pre == "deepseek-v3" and "~" in text and _same_text(server, text, ours)


def _same_text(server: Llama, text: str, ours: list[int]) -> bool:
    """Tell whether ids that differ say the same."""
    theirs = server.ask("tokenize", texts=[text], add_special=False)[0]
    one, other = server.ask("detokenize", ids=[ours, theirs])
    return one == other


_ASCII_PATTERNS = ("gpt-4o", "tekken", "llama4")
_KNOWN: dict[str, Callable[[Llama, str, list[int], str], bool]] = {
    "does not compose accents": _composes,
    "takes text that looks like a special token for one": _looks_special,
    "puts a second blank in front of a blank": _second_blank,
    "splits scripts with other letters than ASCII in another way": _splits_scripts,
    "splits at a tilde in another way": _tilde,
}


def check_habits(server: Llama, tokenizer: Any) -> Check:
    """Compare what is put around plain text: begin and end tokens."""
    limit = "plain text gets the same begin and end tokens"
    ours, theirs = list(tokenizer("a b")["input_ids"]), server.ask("tokenize", texts=["a b"], add_special=True)[0]
    found = f"'a b' becomes {theirs}" + ("" if ours == theirs else f", should be {ours}")
    return Check("begin and end tokens", ours == theirs, found, limit)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, without what is put around them."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _ids_differ(text: str, ours: list[int], theirs: list[int]) -> str:
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return (
        f"{printable(text, 40)} has {len(theirs)} ids there and {len(ours)} here; "
        f"from place {first} on {theirs[first : first + 4]}, should be {ours[first : first + 4]}"
    )


def _texts_differ(server: Llama, tokenizer: Any, lists: list[list[int]]) -> list[str]:
    ours = tokenizer.batch_decode(lists, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    theirs = server.ask("detokenize", ids=lists)
    return [
        f"ids {ids[:6]} become {printable(b, 40)} there and {printable(a, 40)} here"
        for ids, a, b in zip(lists, ours, theirs, strict=True)
        if not _alike(a, b)
    ]


def _alike(one: str, other: str) -> bool:
    """Tell whether texts are equal, but for the blank that some tokenizers put in front and take away again."""
    return one == other or one.removeprefix(" ") == other.removeprefix(" ")


def _streams_badly(server: Llama, texts: Sequence[str]) -> list[str]:
    """Return texts whose tokens, read one by one as bytes, are not the whole: characters may be split over tokens."""
    short = [text for text in texts if 0 < len(text) < 200]
    joined = [bytes.fromhex("".join(p)).decode("utf-8", "replace") for p in server.ask("pieces", texts=short)]
    whole = server.ask("detokenize", ids=server.ask("tokenize", texts=short, add_special=False))
    return [
        f"{printable(text, 40)} is streamed as {printable(streamed, 40)}"
        for text, streamed, wanted in zip(short, joined, whole, strict=True)
        if not _alike(streamed, wanted)
    ]


def check_long(server: Llama, tokenizer: Any) -> Check:
    """Compare the ids of a long text of one letter, in which some pre-tokenizers of llama.cpp lose their stack."""
    limit = f"equal ids for {LONG} letters"
    text = "a" * LONG
    try:
        theirs = server.ask("tokenize", texts=[text], add_special=False)[0]
    except LlamaDied as error:
        return not_done("long text", f"{error}: its pre-tokenizer cannot take it, whatever the file", limit)
    ours = encode(tokenizer, [text])[0]
    return Check("long text", ours == theirs, f"{len(theirs)} ids there, {len(ours)} here", limit)


def check_round_trip(server: Llama, tokens: Sequence[str]) -> Check:
    """See that texts survive, where there is no tokenizer to compare with; `tokens`: control tokens of the file."""
    limit = "what is split and joined twice stays the same, control tokens become one id"
    texts = plain_texts(tokens)
    once = server.ask("detokenize", ids=server.ask("tokenize", texts=texts, add_special=False))
    twice = server.ask("detokenize", ids=server.ask("tokenize", texts=once, add_special=False))
    lost = [text for text, a, b in zip(texts, once, twice, strict=True) if a.strip() != b.strip()]
    ids = server.ask("tokenize", texts=list(tokens), add_special=False)
    split = [token for token, found in zip(tokens, ids, strict=True) if len(found) != 1]
    numbers = {"texts": len(texts), "changed": len(lost), "split": len(split)}
    if lost or split:
        first = f"{printable(lost[0], 40)} changes" if lost else f"{split[0]} is split"
        return Check(
            "tokenizer", False, f"{len(lost)} texts change, {len(split)} tokens split; {first}", limit, numbers
        )
    found = f"{len(texts)} texts stay the same, {len(tokens)} control tokens are whole"
    return Check("tokenizer", True, found, limit, numbers)
