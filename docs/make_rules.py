"""Write the table of rules into docs/runs.md, between its marks."""

from __future__ import annotations

from pathlib import Path

from luthier.runs.health import table

TARGET = Path(__file__).with_name("runs.md")
BEGIN, END = "<!-- rules: made by `make docs` -->\n", "<!-- end of rules -->"


def main() -> None:
    """Replace what stands between the marks."""
    before, begin, rest = TARGET.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{TARGET.name} has not both marks: {BEGIN.strip()} and {END}")
    TARGET.write_text(f"{before}{begin}{table()}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
