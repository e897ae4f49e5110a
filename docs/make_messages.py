"""Find the messages that people meet on the page, and tell which have no translation yet.

python docs/make_messages.py --missing data models    # templates without one, as JSON
python docs/make_messages.py --left-over              # entries that the source has no more
python docs/make_messages.py --sort                   # each catalogue in the order of the source
"""

from __future__ import annotations

import argparse
import ast
import json
from functools import cache

from message_search import SOURCE, Search, spelled

CATALOGUES = SOURCE / "server" / "ui" / "words" / "messages"
OTHERS = "libraries"
"""The catalogue of what libraries say."""


@cache
def needed() -> dict[str, list[str]]:
    """Return package -> templates that need a translation."""
    return Search().run()


@cache
def allowed() -> set[str]:
    """Return every text of the source as a template: what an entry may be for."""
    search = Search()
    found: set[str] = set()
    for module in search.modules:
        for node in ast.walk(module.tree):
            text = search.template(node)
            if text:
                found.add(spelled(text))
    return found


def is_left_over(template: str) -> bool:
    """Tell whether an entry is for nothing.

    "the list {}" is for "the list" with a value behind it, "a number" for "expected a number" where a longer template
    takes the first word.
    """
    spelled = {template, template.removesuffix("{}"), template.removesuffix(" {}"), f"expected {template}"}
    return not spelled & allowed()


def catalogue(package: str) -> dict[str, str]:
    """Return what is translated of a package."""
    path = CATALOGUES / f"{package}.zh.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> None:
    """Print what is missing or left over, or bring the catalogues into order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", nargs="*", metavar="PACKAGE")
    parser.add_argument("--left-over", action="store_true")
    parser.add_argument("--sort", action="store_true")
    asked = parser.parse_args()
    known = {package: catalogue(package) for package in [*needed(), *(p.name[:-8] for p in CATALOGUES.glob("*.json"))]}
    everywhere = {template for entries in known.values() for template in entries}
    if asked.missing is not None:
        chosen = asked.missing or list(needed())
        told = {each: [text for text in needed().get(each, []) if text not in everywhere] for each in chosen}
        print(json.dumps(told, ensure_ascii=False, indent=1))
    if asked.left_over:
        left = {package: list(filter(is_left_over, entries)) for package, entries in known.items() if package != OTHERS}
        print(json.dumps({package: texts for package, texts in left.items() if texts}, ensure_ascii=False, indent=1))
    if asked.sort:
        for package, entries in known.items():
            order = {text: place for place, text in enumerate(needed().get(package, []))}
            ordered = dict(sorted(entries.items(), key=lambda each: (order.get(each[0], len(order)), each[0])))
            if ordered:
                text = json.dumps(ordered, ensure_ascii=False, indent=1) + "\n"
                (CATALOGUES / f"{package}.zh.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
