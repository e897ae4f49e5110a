"""Every Triton kernel compiles for the GPUs that are named here, without one."""

import ast
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
TRITON = ROOT / "src/luthier/kernels/triton"
TARGETS = {
    "sm_80": (("cuda", "80", "32"), 163),
    "sm_90": (("cuda", "90", "32"), 227),
    "sm_100": (("cuda", "100", "32"), 227),
    "gfx942": (("hip", "gfx942", "64"), 64),
}
"""GPU -> how Triton names it, and the KiB of shared memory that one program may have."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What compiling gave for each target, two targets at once, in processes that do not interpret."""
    script = Path(__file__).with_name("compile_for.py")

    def run(target: str) -> list[dict]:
        cache = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp(target))}
        command = [sys.executable, str(script), *TARGETS[target][0]]
        done = subprocess.run(command, env=os.environ | cache, check=True, capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TARGETS, pool.map(run, TARGETS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_and_fits(target: str, lines: dict[str, list[dict]]) -> None:
    limit = TARGETS[target][1] * 1024
    assert lines[target]
    assert [line for line in lines[target] if line.get("shared", limit + 1) > limit] == []


@pytest.mark.parametrize("path", sorted(TRITON.glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_every_launched_kernel_has_a_signature(path: Path) -> None:
    launched = {
        node.func.value.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name)
    }
    module = import_module(f"luthier.kernels.triton.{path.stem}")
    assert {kernel.__name__ for kernel, _, _ in module.SIGNATURES} == launched
