"""Two processes that share every step give the losses of one that does it all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Jobs

from luthier.runs.store import read_events

WATCHED = {
    "dpo": [("train", "rewards/margins"), ("eval", "eval_rewards/accuracies")],
    "kto": [("train", "kl"), ("eval", "eval_kl"), ("eval", "eval_logps/chosen")],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    ["sft", "dpo\npref_bco_weight: 1.0", "dpo\nprecompute_reference: false", "kto"],
    ids=["sft", "dpo-bco", "dpo-on-the-fly", "kto"],
)
def test_two_processes_equal_one(tiny: Path, rows: Path, pairs: Path, tmp_path: Path, jobs: Jobs, stage: str) -> None:
    rows = rows if stage == "sft" else pairs
    (tmp_path / "f.yaml").write_text(
        f"model_name_or_path: {tiny}\nstage: {stage}\ndataset: {rows}\nlora_rank: 4\ndtype: float32\ndevice: cpu\nthreads: 1\n"
        "num_train_epochs: 2\nper_device_train_batch_size: 3\nlearning_rate: 1e-3\nval_size: 5\neval_steps: 2\nplot_loss: false\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "luthier"]
    env = {**os.environ, "LUTHIER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*launch, "train", "f.yaml", "output_dir=two"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "two"
    alone = jobs.run("train", "f.yaml", "output_dir=one", "gradient_accumulation_steps=2", cwd=tmp_path)
    assert alone.code == 0, alone.err
    for kind, key in (
        ("train", "loss"),
        ("train", "grad_norm"),
        ("train", "tokens"),
        ("eval", "eval_loss"),
        *WATCHED.get(stage.partition("\n")[0], []),
    ):
        one, two = ([event[key] for event in read_events(tmp_path / run, kind)] for run in ("one", "two"))
        assert len(one) >= 3
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "stage: grpo\ncut_off: mask\nmax_completion_length: 200\ncutoff_len: 320",
        "stage: dapo\nmax_resample_rounds: 2",
        "stage: ppo\nscore_scaling: true\nppo_whiten_rewards: true\nrollout_epochs: 2",
    ],
    ids=["grpo-masked", "dapo", "ppo"],
)
def test_two_processes_answer_prompts_together(tiny: Path, rows: Path, tmp_path: Path, more: str) -> None:
    """Each answers prompts of its own, also where one of them has nothing to learn from; both hold the same weights."""
    (tmp_path / "grader.py").write_text("def grade(text, example):\n    return len(set(text)) / 9\n")
    (tmp_path / "f.yaml").write_text(
        f"model_name_or_path: {tiny}\ndataset: {rows}\nlora_rank: 4\ndtype: float32\ndevice: cpu\nthreads: 1\nmax_steps: 3\n"
        "per_device_train_batch_size: 4\nnum_generations: 2\nrewards: ['grader.py:grade']\nlearning_rate: 1e-2\n"
        f"eval_dataset: {rows}\nmax_samples: 4\neval_steps: 2\nplot_loss: false\nrollout_minibatches: 1\n{more}\n"
        + ("" if "max_completion_length" in more else "max_completion_length: 6\n")
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "luthier"]
    env = {**os.environ, "LUTHIER_CACHE": str(tmp_path / "cache")}
    command = [*launch, "train", "f.yaml", "output_dir=two", "max_flat_steps=9"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    one, two = (read_events(tmp_path / run, "train") for run in ("two", "two/rank-1"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        same = [key for key in a if key.startswith(("reward", "rollout/", "policy/", "value/", "grad_norm"))]
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
