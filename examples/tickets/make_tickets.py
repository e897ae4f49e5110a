"""Write the ticket data: support tickets and the strict JSON that a help desk wants of them.

The rows are synthetic and were written for this project. The keys, their order and the allowed values
stand nowhere in the question: a model has to learn them. Held-out rows use products, people, numbers and sentences
that no training row has.

    python make_tickets.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import ticket_words as words

TRAINING_ROWS, HELD_OUT_ROWS = 608, 64
TASK = "Turn this support ticket into JSON."
KEYS = ("intent", "product", "urgency", "order", "contact")


@dataclass(frozen=True)
class Ticket:
    """A ticket's text and its fields."""

    text: str
    fields: dict[str, str | None]

    def row(self) -> dict[str, str]:
        """Return the row as it stands in the file."""
        answer = json.dumps(self.fields, ensure_ascii=False, separators=(",", ":"))
        return {"instruction": f"{TASK}\n{self.text}", "output": answer}


def listed(pair: tuple[str | list[str], str | list[str]], split: int) -> list[str]:
    """Return the words of one split; a text is a list with semicolons."""
    part = pair[split]
    return [word.strip() for word in part.split(";")] if isinstance(part, str) else part


def make(draw: random.Random, intent: str, split: int) -> Ticket:
    """Return one ticket; `split` 0 is training, 1 is held out."""
    name, town = draw.choice(listed(words.NAMES, split)), draw.choice(listed(words.TOWNS, split))
    product = draw.choice(listed(words.PRODUCTS, split))
    urgency = draw.choice(list(words.URGENCY))
    # Even numbers train, odd ones are held out.
    order = f"{draw.choice('ABCKRT')}-{draw.randrange(10000, 99998, 2) + split}" if draw.random() < 0.75 else None
    contact = contact_of(draw, split) if draw.random() < 0.7 else None
    parts = [
        draw.choice(words.INTENTS[intent][split]).format(product=product),
        draw.choice(words.URGENCY[urgency][split]),
    ]
    if draw.random() < 0.5:
        parts.append(draw.choice(words.CHATTER[split]).format(town=town))
    if order:
        parts.append(draw.choice(words.ORDERS[split]).format(order=order))
    if contact:
        parts.append(draw.choice(words.CONTACTS[split]).format(contact=contact))
    draw.shuffle(parts)
    closing = draw.choice(words.CLOSINGS[split]).format(name=name)
    text = " ".join(part for part in (draw.choice(words.GREETINGS[split]), *parts, closing) if part)
    return Ticket(text, dict(zip(KEYS, (intent, product, urgency, order, contact), strict=True)))


def contact_of(draw: random.Random, split: int) -> str:
    """Return an e-mail address or a telephone number. Even numbers train, odd ones are held out."""
    number = 2 * draw.randrange(5, 49) + split
    if draw.random() < 0.3:
        return f"0{draw.randrange(100, 999)} {draw.randrange(1000, 9999)}{number}"
    first, last = draw.choice(listed(words.MAIL_WORDS, split)), draw.choice(listed(words.MAIL_WORDS, split))
    return f"{first}.{last}{number}@{draw.choice(listed(words.MAIL_HOSTS, split))}"


def make_split(seed: int, num_rows: int, split: int) -> list[Ticket]:
    """Return different tickets, intents in turn, then shuffled."""
    draw, tickets = random.Random(seed), {}
    intents = list(words.INTENTS)
    while len(tickets) < num_rows:
        ticket = make(draw, intents[len(tickets) % len(intents)], split)
        tickets.setdefault(ticket.text, ticket)
    rows = list(tickets.values())
    draw.shuffle(rows)
    return rows


def check(training: list[Ticket], held_out: list[Ticket]) -> None:
    """Fail when the splits share a fill or a sentence, or an answer is no JSON with the keys in order."""
    pairs = [
        words.PRODUCTS,
        words.NAMES,
        words.TOWNS,
        words.MAIL_HOSTS,
        words.MAIL_WORDS,
        words.CHATTER,
        words.ORDERS,
        words.CONTACTS,
    ]
    pairs += [*words.INTENTS.values(), *words.URGENCY.values()]
    for pair in pairs:
        shared = set(listed(pair, 0)) & set(listed(pair, 1)) - {""}
        if shared:
            raise SystemExit(f"in both splits: {shared}")
    for key in ("product", "order", "contact"):
        shared = {t.fields[key] for t in training} & {t.fields[key] for t in held_out} - {None}
        if shared:
            raise SystemExit(f"{key} in both splits: {shared}")
    for ticket in (*training, *held_out):
        if tuple(json.loads(ticket.row()["output"])) != KEYS:
            raise SystemExit(f"wrong keys: {ticket}")


def main() -> None:
    """Write train.jsonl and heldout.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    training, held_out = make_split(1, TRAINING_ROWS, 0), make_split(2, HELD_OUT_ROWS, 1)
    check(training, held_out)
    for name, tickets in (("train", training), ("heldout", held_out)):
        lines = [json.dumps(ticket.row(), ensure_ascii=False) + "\n" for ticket in tickets]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
