"""Noise on embeddings, when lines are written, when rows are evaluated, and which checkpoint is the best."""

import math
from pathlib import Path

import pytest
import torch
from helpers import losses, segment, stop_after

from luthier.config.load import load_config
from luthier.core.batch import Spans
from luthier.core.errors import Interrupted, TrainingError
from luthier.data.pack import pack
from luthier.models.noise import EmbeddingNoise, row_lengths
from luthier.models.policy import Policy
from luthier.runs.store import read_events
from luthier.workflows.train import train


def settings(tiny: Path, rows: Path, run: Path, **more):
    fixed = {"learning_rate": 1e-2, "max_steps": 5, "per_device_train_batch_size": 4, "cutoff_len": 128, "save_steps": 1,
             "plot_loss": False, "dtype": "float32", "threads": 1, "model_name_or_path": str(tiny), "dataset": str(rows)}  # fmt: skip
    return load_config({**fixed, "output_dir": str(run), **more}).config


def test_lengths_of_rows() -> None:
    """A shared beginning of 2 with branches of 3 and 1, and a row of 4 by itself."""
    spans = Spans((0, 2, 5, 6), (2, 5, 6, 10), (-1, 0, 0, -1))
    assert row_lengths(spans).tolist() == [5, 5, 5, 5, 5, 3, 4, 4, 4, 4]


@pytest.fixture
def policy(tiny: Path) -> Policy:
    from transformers import AutoModelForCausalLM

    policy = Policy(AutoModelForCausalLM.from_pretrained(tiny))
    policy.noise = EmbeddingNoise(policy.model, 5.0)
    return policy


def test_noise_by_hand(policy: Policy) -> None:
    """The same draws as in the paper's formula, at the size of each row; nothing in evaluation mode."""
    seen = []
    policy.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output[0].detach())
    )
    batch = pack([[segment(3, 5, seed=1)], [segment(2, 12, seed=2)]])
    policy.train()
    torch.manual_seed(5)
    policy(batch)
    policy.eval()
    policy(batch)
    noise = seen[0] - seen[1]
    torch.manual_seed(5)
    drawn = torch.empty(1, 7 + 13, 32).uniform_(-1, 1)[0]
    size = torch.tensor([5 / math.sqrt(7 * 32)] * 7 + [5 / math.sqrt(13 * 32)] * 13)[:, None]
    torch.testing.assert_close(noise, drawn * size, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[1], policy.model.get_input_embeddings().weight[batch.input_ids])


def test_noise_goes_on_bit_identically(tiny: Path, rows: Path, tmp_path: Path, monkeypatch) -> None:
    more = {"neftune_noise_alpha": 5, "gradient_checkpointing": True, "val_size": 4, "eval_steps": 2}
    train(settings(tiny, rows, tmp_path / "whole", **more), quiet=True)
    expected = losses(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tiny, rows, tmp_path / "run", **more), quiet=True)
    train(settings(tiny, rows, tmp_path / "run", resume="must", **more), quiet=True)
    assert losses(tmp_path / "run") == expected
    train(settings(tiny, rows, tmp_path / "quiet", **{**more, "neftune_noise_alpha": 0}), quiet=True)
    assert losses(tmp_path / "quiet") != expected


def test_lines_evaluations_and_the_best_checkpoint(tiny: Path, rows: Path, tmp_path: Path) -> None:
    more = {"val_size": 4, "eval_steps": 1, "eval_delay": 3, "logging_steps": 3, "logging_first_step": True,
            "compute_accuracy": True, "metric_for_best_model": "accuracy", "load_best_model_at_end": True}  # fmt: skip
    train(settings(tiny, rows, tmp_path / "run", **more), quiet=True)
    assert [event["step"] for event in read_events(tmp_path / "run", "train")] == [1, 3, 5]
    evaluations = read_events(tmp_path / "run", "eval")
    assert [event["step"] for event in evaluations] == [3, 4, 5]
    assert all(0 <= event["eval_accuracy"] <= 1 for event in evaluations)
    best = max(evaluations, key=lambda event: event["eval_accuracy"])
    kept = (tmp_path / "run" / f"checkpoint-{best['step']}" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == kept


def test_accuracy_is_how_often_the_most_probable_token_is_right(policy: Policy) -> None:
    batch = pack([[segment(3, 5, seed=1)]])
    policy.eval()
    found = policy(batch, reads=frozenset({"logp", "correct"})).correct
    logits = policy.model(batch.input_ids[None]).logits[0, batch.rows]
    assert found.tolist() == (logits.argmax(-1) == batch.targets).float().tolist()


def test_a_metric_that_is_not_there_is_named(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"metric_for_best_model: bleu is not among .* there are eval_loss"):
        train(
            settings(tiny, rows, tmp_path / "run", val_size=4, eval_steps=1, metric_for_best_model="bleu"), quiet=True
        )


def test_the_reference_may_have_adapters_of_its_own(tiny: Path, rows: Path, pairs: Path, tmp_path: Path) -> None:
    """An adapter beside the model says the same as the run that it comes from; without it the losses are others."""
    train(settings(tiny, rows, tmp_path / "sft"), quiet=True)
    more = {"stage": "dpo", "max_steps": 2, "learning_rate": 1e-3}
    own = {"ref_model": str(tmp_path / "sft")}, {"ref_model_adapters": str(tmp_path / "sft")}, {}
    for name, which in zip("abc", own, strict=True):
        train(settings(tiny, pairs, tmp_path / name, **more, **which), quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
