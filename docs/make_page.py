"""Write web/openapi.json, from which the page's types are made, and the table of paths in docs/ui.md.

python docs/make_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

from luthier.server.ui.openapi import document, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ui.md"
BEGIN, END = "<!-- paths: made by `make docs` -->\n", "<!-- end of paths -->"


def main() -> None:
    """Write both files."""
    shapes = json.dumps(document(), indent=1, ensure_ascii=False) + "\n"
    (ROOT / "web" / "openapi.json").write_text(shapes, encoding="utf-8")
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} has not both marks: {BEGIN.strip()} and {END}")
    PAGE.write_text(f"{before}{begin}{table()}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
