"""The shape of the code: who may import whom, and how long a room may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/luthier"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60

LAYERS = [
    {"core"},
    {"config", "kernels", "runs"},
    {"data", "environments", "families", "objectives", "rewards", "tuning"},
    {"models"},
    {"engines"},
    {"training", "export", "evaluation"},
    {"workflows"},
    {"server"},
    {"api", "cli", "facade"},
    {"chat_templates"},
]
"""A module imports its own package or a strictly lower layer; shelves never import each other."""


def rank(part: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if part in names)


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    return [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]


@pytest.mark.parametrize(
    "path", [p for p in FILES if part_of(p) not in ("__init__", "__main__")], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_layers(path: Path) -> None:
    here = part_of(path)
    parts = {module.split(".")[1] for module in imports(ast.parse(path.read_text())) if module.startswith("luthier.")}
    assert [part for part in parts - {here} if rank(part) >= rank(here)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_lengths(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


def test_settings_are_read_without_torch() -> None:
    code = "import sys, luthier.config.load as l; l.load_config({'model_name_or_path': 'm'}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reference_page_is_current() -> None:
    subprocess.run([sys.executable, str(ROOT / "docs/make_reference.py"), "--check"], check=True)


def test_every_link_in_the_docs_leads_somewhere() -> None:
    import re

    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
