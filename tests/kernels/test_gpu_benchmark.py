"""The benchmark for GPUs goes through every kernel, here in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.kernels.op import KERNELS

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(*arguments: str) -> tuple[int, list[dict]]:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--small", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_kernel_is_checked_and_timed_and_an_error_stops_nothing(tmp_path: Path) -> None:
    names = list(KERNELS.names())
    out = tmp_path / "lines.jsonl"
    code, lines = run("--parts", "kernels", "--kernels", "missing", *names, "--dtypes", "bfloat16", "--out", str(out))
    assert code == 1
    assert [line["measure"] for line in lines if "error" in line] == ["kernels:missing"]
    checked = {(line["kernel"], line["backend"]) for line in lines if line["measure"] == "kernel_check" and line["ok"]}
    assert checked == {(name, b.name) for name in names for b in KERNELS.get(name).backends if b.unusable() is None}
    timed = {line["kernel"] for line in lines if line["measure"] == "kernel_time"}
    assert timed == set(names)
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
