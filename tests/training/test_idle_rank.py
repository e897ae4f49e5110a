"""A process that has nothing to learn from keeps step with the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.runs.store import read_events
from luthier.training.metrics import Means

GRADER = """
import os

def grade(text, example):
    return 1.0 if os.environ["RANK"] == "1" else len(set(text)) + sum(map(ord, text)) / 1e6
"""


def test_names_that_one_rank_has_are_known_to_all() -> None:
    here = Means()
    here.add({"loss": (torch.tensor(2.0), torch.tensor(4.0))})
    here.raise_to({"ratio": 1.5})
    here.agree(lambda names: ["elsewhere", *names])
    assert here.take(lambda pair: pair + 1) == {"elsewhere": 1.0, "loss": 3 / 5}
    assert here.peaks(lambda value: torch.cat([value, torch.tensor([3.0])])) == {"elsewhere": 3.0, "ratio": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("more", ["stage: dupo", "stage: ppo\ncut_off: mask"], ids=["dupo", "ppo-masked"])
def test_one_of_two_processes_has_no_answers(tiny: Path, rows: Path, tmp_path: Path, more: str) -> None:
    (tmp_path / "grader.py").write_text(GRADER)
    (tmp_path / "f.yaml").write_text(
        f"model_name_or_path: {tiny}\ndataset: {rows}\nlora_rank: 4\ndtype: float32\ndevice: cpu\nthreads: 1\nmax_steps: 3\n"
        "per_device_train_batch_size: 4\nnum_generations: 2\nmax_completion_length: 6\nlearning_rate: 1e-2\nplot_loss: false\n"
        f"rewards: ['grader.py:grade']\neval_dataset: {rows}\nmax_samples: 6\neval_steps: 1\nsave_steps: 1\n"
        f"load_best_model_at_end: true\n{more}\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "luthier"]
    env = {**os.environ, "LUTHIER_CACHE": str(tmp_path / "cache")}
    command = [*launch, "train", "f.yaml", "output_dir=two"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    held_out = [
        [event["eval_reward"] for event in read_events(tmp_path / run, "eval")] for run in ("two", "two/rank-1")
    ]
    assert held_out[0] == held_out[1]
    assert held_out[0][0] > 1
    one, two = (read_events(tmp_path / run, "train") for run in ("two", "two/rank-1"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        same = [key for key in a if key.startswith(("reward", "rollout/", "policy/", "value/", "grad_norm"))]
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
