"""Write docs/models.md from the shelf of families and the table of foreign layouts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.registry import FAMILIES
from luthier.models.foreign import FOREIGN

if TYPE_CHECKING:
    from luthier.core.protocols import Family

TARGET = Path(__file__).with_name("models.md")
HEAD = """# Models

Made by `make docs` from `luthier/families` and `luthier/models/foreign.py`. Every row is tested on a small random model
of the true architecture: packed rows equal separate ones in logits and gradients, kernels on equal kernels off, every
name of a layer is real, and a saved model computes the same when it is loaded again.

A model type that is not here works too, if transformers knows it: its layers are found by structure, kernels stay off,
and each segment of a batch is a forward pass of its own. Code that comes with a model runs only with
`allow_remote_code=true`, and only where nothing here computes the model; the refusal shows name, size and SHA-256 of
each of its files.
"""
PACKED = {
    "forest": "our attention",
    "mask": "a dense mask for the model's own attention",
    "alone": "no: each segment is computed alone",
}
COLUMNS = "| model type | models | template | linear layers of `lora_target: all` | experts | GGUF | packed | kernels |"
WORDS = """
- **template**: names that fit, the most usual first; `default` is the one that the tokenizer brings.
- **experts**: the weights of all experts of a layer, as one parameter; routers learn only in full tuning.
- **packed**: who computes rows that hold several segments.
- **kernels**: beside those of the head and of packed attention; `decoder` means that the engine `local` answers, else
  transformers does.
"""


def families() -> list[Family]:
    """Return each family once, by the name of its first model type."""
    return sorted({id(f): f for _, f in FAMILIES.items()}.values(), key=lambda f: f.model_types[0])


def code(names: tuple[str, ...]) -> str:
    """Return names in code type, separated by spaces."""
    return " ".join(f"`{name}`" for name in names) or "none"


def row(family: Family) -> str:
    """Return the row of one family."""
    experts = tuple(name.rpartition(".")[2] for name in family.experts)
    cells = (
        code(family.model_types), family.models, code(family.templates), code(family.lora_targets),
        code(experts) if experts else "", f"`{family.gguf}`" if family.gguf else "none", PACKED[family.packing],
        code(family.kernels),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def foreign() -> list[str]:
    """Return the rows of foreign layouts."""
    notes = {
        "baichuan": "7B; 13B has ALiBi and needs its own code. Baichuan 2 gets a head whose rows have length one",
        "chatglm": "2 and 3, and GLM-4 9B in its first layout; the first generation needs its own code",
        "minicpm": "without experts and sparse attention",
    }
    return [f"| `{name}` | `{how.becomes}` | {notes.get(name, how.note)} |" for name, how in FOREIGN.items()]


def page() -> str:
    """Return the page."""
    lines = [HEAD, COLUMNS, "|" + "---|" * (COLUMNS.count("|") - 1), *map(row, families()), WORDS]
    lines += ["## Quirks", ""]
    lines += [f"- `{family.model_types[0]}`: {family.quirks}" for family in families() if family.quirks]
    lines += ["", "## Layouts that are re-laid while loading", ""]
    lines += [
        "transformers has no class under these names, but one that computes the same once the weights are cut and",
        "renamed. That happens tensor by tensor; what is trained is saved under the second name.",
        "", "| in config.json | becomes | |", "|---|---|---|", *foreign(),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or with --check fail when it is not current."""
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == page() else "docs/models.md is old: run make docs")
    TARGET.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
