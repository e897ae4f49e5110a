"""Write web/openapi.json, from which `npm run types` makes the TypeScript types of the page's interface.

python docs/make_page_types.py
"""

from __future__ import annotations

import json
from pathlib import Path

from luthier.server.ui.openapi import document

TARGET = Path(__file__).parents[1] / "web" / "openapi.json"


if __name__ == "__main__":
    TARGET.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(TARGET)
