"""Compare the tokenizer inside a file, as llama.cpp reads it, with the one of transformers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from luthier.core.log import printable
from luthier.export.verify.known import Known
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
    known, told = Known(server, tokenizer, pre), Counter[str]()
    for group, texts in groups.items():
        ours = encode(tokenizer, texts)
        theirs = server.ask("tokenize", texts=texts, add_special=False)
        other = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        reasons = {i: known.reason(texts[i], ours[i], theirs[i]) for i in other}
        told.update(reason for reason in reasons.values() if reason)
        faults = [_ids_differ(texts[i], ours[i], theirs[i]) for i, reason in reasons.items() if reason is None]
        again = _texts_differ(known, [ids for ids in ours if ids])
        numbers |= {group: len(texts), f"{group}_differ": len(faults), f"{group}_decoded_differ": len(again)}
        wrong += faults[:1] + again[:1]
    broken = _streams_badly(known, groups["plain"])
    wrong += broken[:1]
    numbers |= {"streamed_differ": len(broken), "known_differ": told.total()}
    count = sum(map(len, groups.values()))
    said = "".join(f"; llama.cpp {reason} ({number} texts)" for reason, number in told.items())
    if wrong:
        total = int(sum(value for key, value in numbers.items() if key.endswith("differ") and key != "known_differ"))
        return Check("tokenizer", False, f"{total} of {count} texts differ; {wrong[0]}{said}", LIMIT, numbers)
    return Check("tokenizer", True, f"{count} texts are equal in both directions{said}", LIMIT, numbers)


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


def _texts_differ(known: Known, lists: list[list[int]]) -> list[str]:
    ours = known.tokenizer.batch_decode(lists, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    theirs = known.server.ask("detokenize", ids=lists)
    alike = _alike(known)
    return [
        f"ids {ids[:6]} become {printable(b, 40)} there and {printable(a, 40)} here"
        for ids, a, b in zip(lists, ours, theirs, strict=True)
        if not alike(a, b)
    ]


def _alike(known: Known) -> Callable[[str, str], bool]:
    """Return what compares texts; where a blank is put in front, it may be taken away again or not."""
    if not known.puts_blank:
        return lambda one, other: one == other
    return lambda one, other: one.lstrip(" ") == other.lstrip(" ") and abs(len(one) - len(other)) <= 1


def _streams_badly(known: Known, texts: Sequence[str]) -> list[str]:
    """Return texts whose tokens, read one by one as bytes, are not the whole: characters may be split over tokens."""
    short, ask, alike = [text for text in texts if 0 < len(text) < 200], known.server.ask, _alike(known)
    joined = [bytes.fromhex("".join(p)).decode("utf-8", "replace") for p in ask("pieces", texts=short)]
    whole = ask("detokenize", ids=ask("tokenize", texts=short, add_special=False))
    return [
        f"{printable(text, 40)} is streamed as {printable(streamed, 40)}"
        for text, streamed, wanted in zip(short, joined, whole, strict=True)
        if not alike(streamed, wanted)
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
