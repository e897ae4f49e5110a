"""Write docs/reference.md from the declarations: settings, compatibility tables, commands."""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.cli.show import kind_of
from luthier.config import compat
from luthier.config.load import SHELVES, adapter
from luthier.config.schema import SECTIONS

TARGET = Path(__file__).with_name("reference.md")


def settings() -> list[str]:
    """Return a table for each section and each thing on a shelf."""
    lines: list[str] = []
    classes = [(section, cls) for section, cls in SECTIONS.items()]
    classes += [(f"{s}: {{name: {n}}}", cls) for s, (shelf, _) in SHELVES.items() for n, cls in shelf.items()]
    for title, cls in classes:
        schema = adapter(cls).json_schema()
        lines += [f"\n### {title}\n", schema.get("description", "").partition("\n")[0], ""]
        properties = schema.get("properties", {})
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"] if properties else ["No settings."]
        for key, facts in properties.items():
            default = "required" if key in schema.get("required", ()) else f"`{facts.get('default', {})}`"
            meaning = " ".join(facts.get("description", "").split())
            lines.append(f"| `{key}` | {kind_of(facts).replace('|', 'or')} | {default} | {meaning} |")
    return lines


def compatibility() -> list[str]:
    """Return the tables of foreign keys."""
    lines = ["\n## Keys of LLaMA-Factory that are spelt differently here\n", "| there | here |", "|---|---|"]
    there = {dotted: key for key, dotted in compat.RENAMED.items()}
    combined = [dotted for dotted in compat.WORDS if dotted in there]
    lines += [f"| `{key}` | `{value}` |" for key, value in compat.RENAMED.items() if value not in combined]
    lines += [
        f"| `{key}: true` | {_settings({dotted: value}, there)} |" for key, (dotted, value) in compat.SWITCHES.items()
    ]
    for conditions, settings in compat.PRESETS:
        more = {dotted: meaning[conditions[dotted]] for dotted, meaning in compat.MEANS.items() if dotted in conditions}
        lines.append(f"| {_settings(conditions, there)} | {_settings(more | settings, {})} |")
    lines += [
        f"| {_settings(conditions, there)} | {_settings(settings, {})} |" for conditions, settings in compat.BECOMES
    ]
    for title, table in (("left out, with a notice", compat.IGNORED), ("refused", compat.REFUSED)):
        lines += [f"\n## Keys that are {title}\n", "| key | reason |", "|---|---|"]
        lines += [f"| `{key}` | {reason} |" for key, reason in table.items()]
    return lines


def _settings(settings: dict[str, object], names: dict[str, str]) -> str:
    return " and ".join(f"`{names.get(dotted, dotted)}: {value}`" for dotted, value in settings.items())


def main() -> None:
    """Write the page, or with --check fail when it is not current."""
    head = "# Reference\n\nMade by `make docs` from the declarations; `luthier explain KEY` prints the same.\n\n## Settings"
    text = "\n".join([head, *settings(), *compatibility()]) + "\n"
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else "docs/reference.md is old: run make docs")
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
