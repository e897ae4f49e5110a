"""Write the reply data: a shop's letters from customers, curt and kind answers to them, and which of the two is better.

The rows are synthetic and were written for this project. These files come out:

- sft.jsonl: what the shop used to answer, three times out of five curtly;
- pairs.jsonl and pairs_heldout.jsonl: a kind and a curt answer to the same letter, of about equal length;
- prompts.jsonl and prompts_heldout.jsonl: letters without an answer.

Letters of held-out files name people, goods and troubles that no other file names.

    python make_replies.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Parts = tuple[tuple[str, ...], ...]

NAMES = (
    """Anna;Tom;Priya;Liam;Mei;David;Clara;Ahmed;Nina;Marco;Ingrid;Yuki;Paul;Carlos;Ruth;Olga;Ben;Erik;Hugo;Greta""",
    "Emma;Kofi;Hana;Diego;Grace;Leila;Noah;Vera",
)
GOODS = (
    """desk lamp;rain jacket;bread knife;garden hose;board game;phone case;yoga mat;rice cooker;wall clock;travel mug;
    bike helmet;wool blanket;table fan;chess set;camping stove;door mat;water bottle;tool box;hand mixer;tea pot""",
    "toaster;bookshelf;lunch box;foam roller;ladder;violin bow;bath mat;coffee table;sofa cover;suitcase",
)
TROUBLES = (
    (
        "arrived broken",
        "stopped working after two days",
        "is the wrong colour",
        "has not arrived yet",
        "has a part missing",
        "came in a torn box",
        "is smaller than I was told",
        "makes a strange noise",
    ),
    ("smells of paint", "does not fit together", "came without a manual", "was sent to my neighbour"),
)
OPENINGS = (
    "Hello, this is {name}. My {good} {trouble}. What can you do?",
    "My new {good} {trouble}. Please help me. {name}",
    "I am {name} and I bought a {good} here. It {trouble}.",
    "Good morning. The {good} that I ordered {trouble}. Regards, {name}",
)
KIND = (
    ("Dear {name}, I am sorry about your {good}.", "Hello {name}, thank you for telling us about the {good}."),
    ("We will send you a new one today.", "A new one is on its way to you.", "You get your money back this week."),
    ("Please write again if anything else is wrong.", "Is there more that I can do for you?"),
)
CURT = (
    ("That {good} left our house in order, {name}.", "We have no other complaints about the {good}, {name}."),
    ("Read the terms before you order.", "You should have looked at it sooner.", "Nothing can be done about it now."),
    ("Do not write to us again about this.", "There is no one here who has time for this."),
)


def letter(draw: random.Random, split: int) -> dict[str, str]:
    """Return a letter and what it names; `split` 0 is training, 1 is held out."""
    names, goods = ([word.strip() for word in words[split].split(";")] for words in (NAMES, GOODS))
    named = {"name": draw.choice(names), "good": draw.choice(goods)}
    return {**named, "text": draw.choice(OPENINGS).format(**named, trouble=draw.choice(TROUBLES[split]))}


def reply(draw: random.Random, parts: Parts, about: dict[str, str]) -> str:
    """Return one answer to a letter."""
    return " ".join(draw.choice(part) for part in parts).format(name=about["name"], good=about["good"])


def letters(draw: random.Random, count: int, split: int) -> list[dict[str, str]]:
    """Return letters that all differ."""
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        one = letter(draw, split)
        found[one["text"]] = one
    return list(found.values())


def user(about: dict[str, str]) -> list[dict[str, str]]:
    """Return a letter as the turn of a conversation."""
    return [{"role": "user", "content": about["text"]}]


def said(text: str) -> list[dict[str, str]]:
    """Return an answer as the turn of a conversation."""
    return [{"role": "assistant", "content": text}]


def answered(draw: random.Random, kinds: Sequence[Parts]) -> list[dict[str, Any]]:
    """Return letters with an answer; each of `kinds` is given equally often."""
    rows = [
        {"messages": user(each) + said(reply(draw, kinds[number % len(kinds)], each))}
        for number, each in enumerate(letters(draw, 256, 0))
    ]
    draw.shuffle(rows)
    return rows


def pairs(draw: random.Random, count: int, split: int) -> list[dict[str, Any]]:
    """Return rows with a kind and a curt answer."""
    return [
        {"prompt": user(each), "chosen": said(reply(draw, KIND, each)), "rejected": said(reply(draw, CURT, each))}
        for each in letters(draw, count, split)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().out
    draw = random.Random(11)
    files: dict[str, list[Any]] = {
        "sft": answered(draw, [KIND, KIND, CURT, CURT, CURT]),
        "pairs": pairs(draw, 256, 0),
        "pairs_heldout": pairs(draw, 64, 1),
        "prompts": [{"prompt": user(each)} for each in letters(draw, 256, 0)],
        "prompts_heldout": [{"prompt": user(each)} for each in letters(draw, 64, 1)],
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
