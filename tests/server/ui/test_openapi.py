"""What describes the interface is what it is."""

import json
from pathlib import Path

from luthier.server.ui.openapi import document, table

ROOT = Path(__file__).parents[3]


def test_types_of_the_page_are_made_from_these_shapes() -> None:
    assert json.loads((ROOT / "web/openapi.json").read_text(encoding="utf-8")) == document(), "run make web"


def test_every_path_is_in_the_docs() -> None:
    assert table() in (ROOT / "docs/ui.md").read_text(encoding="utf-8"), "docs/ui.md: run make docs"
