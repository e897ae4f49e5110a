"""Answers that are tagged: packed like separate ones, compared with a reference and with answers to other prompts."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import Jobs, losses, segment, stop_after

from luthier.config.load import load_config
from luthier.config.schema import ModelConfig
from luthier.core.batch import PackedBatch, Scores
from luthier.core.errors import Interrupted
from luthier.data.pack import pack
from luthier.models.device import place
from luthier.models.load import load_model, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.objectives.kto import Kto
from luthier.runs.store import read_events
from luthier.training.trainer import Trainer
from luthier.workflows.estimate import estimate
from luthier.workflows.train import train


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Polite answers are good ones."""
    path = tmp_path_factory.mktemp("tagged") / "tagged.jsonl"
    words = ["tea", "你好", "🙂 ok", "stone", "a longer question about the weather", "x"]
    rows = [
        {"instruction": f"say {words[i % 6]} {i}", "output": f"please {words[(i * 5) % 6]}" if i % 2 else f"{i * 7} no",
         "kto_tag": bool(i % 2)}
        for i in range(22)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(tiny: Path, rows: Path, run: Path, **more: Any):
    base = {"model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(run), "stage": "kto", "lora_rank": 4,
            "learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 8, "dtype": "float32", "plot_loss": False,
            "cutoff_len": 128, "lr_scheduler_type": "constant", "threads": 1}  # fmt: skip
    return load_config({**base, **more}).config


def events(run: Path, name: str, kind: str = "train") -> list[float]:
    return [event[name] for event in read_events(run, kind)]


def load(folder: Path, *, kernels: str = "auto"):
    config = ModelConfig(model_name_or_path=str(folder), dtype="float32", kernels=kernels)
    return load_model(resolve(str(folder)), config, place(config)), config


def units() -> list:
    """A good and a bad answer to two prompts, and to each prompt the answer to the other one, set aside."""
    prompts = [[i + 3 * k for i in range(40)] for k in range(2)]
    answers = [segment(0, 5 + 2 * k, seed=k).tokens for k in range(4)]
    found = []
    for k in range(4):
        made = [segment(0, 0, prefix=[*prompts[k // 2], *answers[a]]) for a in (k, (k + 2) % 4)]
        for each, a, aside in zip(made, (k, (k + 2) % 4), (False, True), strict=True):
            each.weight = [0.0] * 40 + [1.0] * len(answers[a])
            each.aside, each.tags = aside, {"desirable": float(k % 2 == 0)}
        found.append(made)
    return found


def test_packed_answers_equal_separate_ones(tiny: Path) -> None:
    """Loss, gradients and baseline of the packed trees against plain transformers, one sequence at a time."""
    rows = units()
    ours, config = load(tiny)
    put_kernels(ours, config)
    ours.requires_grad_(True)
    batch = pack(rows)
    assert batch.aside is not None
    assert len(batch.spans) == len(batch.aside.spans) == 6
    torch.manual_seed(2)
    ref, ref_aside = (-4 * torch.rand(len(part.targets)) - 4 for part in (batch, batch.aside))
    policy = Policy(ours)
    with torch.no_grad():
        found = (policy(batch.aside).logp - ref_aside).sum() / 4
    baseline = found.clamp(min=0)
    here = batch.with_stream("ref_logp", ref).with_tag("baseline", baseline.expand(4))
    loss = Kto(desirable_weight=1.5)(policy(here), here).total
    loss.backward()

    plain, _ = load(tiny, kernels="off")
    plain.requires_grad_(True)

    def log_ratios(which: int, part: PackedBatch, ref_N: torch.Tensor) -> torch.Tensor:
        logp = []
        for unit in rows:
            ids = torch.tensor([unit[which].tokens])
            every = torch.log_softmax(plain(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            logp.append((every * torch.tensor(unit[which].weight[1:])).sum())
        return torch.stack(logp) - part.sum_by_segment(ref_N)

    expected_baseline = log_ratios(1, batch.aside, ref_aside).mean().detach()
    torch.testing.assert_close(found, expected_baseline, rtol=1e-5, atol=1e-5)
    ratio = log_ratios(0, batch, ref)
    gain = 0.1 * (ratio - expected_baseline.clamp(min=0)) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    expected = (torch.tensor([1.5, 1.0, 1.5, 1.0]) * (1 - torch.sigmoid(gain))).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


def test_the_baseline_is_the_mean_of_the_whole_window(tiny: Path, tagged: Path, tmp_path: Path, monkeypatch) -> None:
    """Every answer of a step gets the same number, however the step is split: the mean over mismatched answers."""
    seen: list[list[PackedBatch]] = []
    annotate = Trainer.annotate_window

    def watching(self, batches):
        found = annotate(self, batches)
        seen.append(found)
        return found

    monkeypatch.setattr(Trainer, "annotate_window", watching)
    for name, more in (("one", {}), ("four", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})):
        train(settings(tiny, tagged, tmp_path / name, **more), quiet=True)
    assert losses(tmp_path / "one").keys() == losses(tmp_path / "four").keys()
    assert events(tmp_path / "four", "loss") == pytest.approx(events(tmp_path / "one", "loss"), abs=1e-5)
    assert events(tmp_path / "four", "kl") == pytest.approx(events(tmp_path / "one", "kl"), abs=1e-4)
    for window in seen:
        numbers = torch.cat([batch.tags["baseline"] for batch in window])
        assert (numbers == numbers[0]).all()
        assert numbers[0] >= 0
    assert max(events(tmp_path / "one", "kl")) > 0


@pytest.mark.parametrize("tuning", [{"lora_dropout": 0.3}, {"finetuning_type": "full", "lora_rank": None}])
def test_scored_beforehand_or_while_training_is_the_same(tiny, tagged, tmp_path, caplog, tuning) -> None:
    """Also what is set aside."""
    more = {**tuning, "val_size": 4, "eval_steps": 2, "learning_rate": 1e-3}
    with caplog.at_level("INFO", "luthier"):
        for name, ahead in (("first", True), ("again", True), ("live", False)):
            train(settings(tiny, tagged, tmp_path / name, precompute_reference=ahead, **more), quiet=True)
    assert caplog.text.count("reference: scoring 22 rows once") == 1
    assert caplog.text.count("22 rows (from the cache)") == 1
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    for name in ("loss", "kl"):
        assert events(tmp_path / "live", name) == pytest.approx(events(tmp_path / "first", name), abs=5e-5)
    evaluated = [read_events(tmp_path / name, "eval")[-1]["eval_loss"] for name in ("first", "live")]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=5e-5)


@pytest.mark.parametrize("source", ["tagged", "pairs"])
def test_tags_are_learned(tiny: Path, request: pytest.FixtureRequest, tmp_path: Path, source: str) -> None:
    rows = request.getfixturevalue(source)
    train(settings(tiny, rows, tmp_path / "run", max_steps=-1, num_train_epochs=8), quiet=True)
    line = read_events(tmp_path / "run", "train")
    assert line[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    both = [each for each in line if each["rewards/chosen"] is not None and each["rewards/rejected"] is not None]
    assert both[-1]["rewards/chosen"] > both[-1]["rewards/rejected"] + 0.3
    assert min(each["loss"] for each in line[-5:]) < 0.45


def test_resume_is_bit_identical(tiny: Path, tagged: Path, tmp_path: Path, monkeypatch) -> None:
    more = {"lora_dropout": 0.2, "save_steps": 1, "learning_rate": 1e-3}
    train(settings(tiny, tagged, tmp_path / "whole", **more), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tiny, tagged, tmp_path / "run", **more), quiet=True)
    train(settings(tiny, tagged, tmp_path / "run", resume="must", **more), quiet=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_memory_is_measured(tiny: Path, tagged: Path, tmp_path: Path) -> None:
    """What is set aside is no part of the batch whose activations wait."""
    config = settings(tiny, tagged, tmp_path / "run")
    sft = settings(tiny, tagged, tmp_path / "run", stage="sft")
    assert estimate(config).tokens == estimate(sft).tokens
    train(settings(tiny, tagged, tmp_path / "run", memory_budget="3GB", max_steps=1), quiet=True)
    assert events(tmp_path / "run", "loss")


def test_preview_names_what_stands_aside(tiny: Path, tagged: Path, tmp_path: Path, jobs: Jobs) -> None:
    (tmp_path / "f.yaml").write_text(f"model_name_or_path: {tiny}\nstage: kto\ndataset: {tagged}\n")
    found = jobs.run("data", "preview", "f.yaml", "--rows", "1", "--json", cwd=tmp_path)
    assert found.code == 0, found.err
    assert [segment["name"] for segment in found.last_json["segments"]] == ["undesirable", "answer to another prompt"]


@pytest.mark.parametrize(("shift", "expected"), [(0.5, 1.5), (-0.5, 0.0)])
def test_the_baseline_is_at_least_0(shift: float, expected: float) -> None:
    """Three tokens of a mismatched answer, each 0.5 nats more, or less, probable than under the reference."""
    batch = pack([[segment(2, 4, seed=1), replace(segment(2, 3, seed=2), aside=True)]])
    assert batch.aside is not None
    aside = batch.aside.with_stream("ref_logp", torch.full((3,), -2.0))

    class Shifted(torch.nn.Module):
        def forward(self, here: PackedBatch) -> Scores:
            return Scores(logp=here.streams["ref_logp"] + shift)

    accelerator = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(policy=Shifted(), accelerator=accelerator, annotate=lambda x: x, _sum=lambda x: x)
    (found,) = Trainer._with_baseline(trainer, [replace(batch, aside=aside)])
    assert found.tags["baseline"].tolist() == [expected]
