"""What describes the interface is what it is."""

import json
from pathlib import Path

from asking import asking

from luthier.server.ui.openapi import document, table

ROOT = Path(__file__).parents[3]


def test_types_of_the_page_are_made_from_these_shapes() -> None:
    assert json.loads((ROOT / "web/openapi.json").read_text(encoding="utf-8")) == document(), "run make web"


def test_every_path_is_in_the_docs() -> None:
    assert table() in (ROOT / "docs/ui.md").read_text(encoding="utf-8"), "docs/ui.md: run make docs"


def test_every_number_in_an_address_has_a_least_one(tmp_path: Path) -> None:
    with asking(tmp_path) as page:
        paths = page.get("/openapi.json")["paths"]
    operations = [(path, each) for path, methods in paths.items() for each in methods.values()]
    asked = [
        (path, field["name"], field["schema"]) for path, each in operations for field in each.get("parameters", [])
    ]
    kinds = [(path, name, kind) for path, name, schema in asked for kind in schema.get("anyOf", [schema])]
    numbers = [each for each in kinds if each[2].get("type") == "integer"]
    assert len(numbers) > 10
    assert [(path, name) for path, name, kind in numbers if "minimum" not in kind] == []
