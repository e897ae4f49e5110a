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
    "stage", ["sft", "dpo", "dpo\nprecompute_reference: false", "kto"], ids=["sft", "dpo", "dpo-on-the-fly", "kto"]
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
