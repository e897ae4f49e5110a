"""Less memory, the same numbers: recomputation, offloading, budgets and optimizers."""

import gc
import os
from pathlib import Path

import pytest
import torch
from helpers import losses, segment

from luthier.config.load import load_config
from luthier.core.errors import ConfigError
from luthier.data.pack import pack
from luthier.models.device import place
from luthier.models.load import load_model, put_kernels, resolve
from luthier.models.policy import Policy
from luthier.models.recompute import Offload, recompute_layers
from luthier.objectives.sft import Sft
from luthier.workflows.estimate import estimate
from luthier.workflows.train import train

SETTINGS = {
    "learning_rate": 1e-3, "lora_rank": 4, "max_steps": 4, "per_device_train_batch_size": 4, "cutoff_len": 128,
    "plot_loss": False, "dtype": "float32", "save_strategy": "no", "threads": 1,
}  # fmt: skip


def settings(tiny: Path, rows: Path, **more):
    return load_config({**SETTINGS, "model_name_or_path": str(tiny), "dataset": str(rows), **more}).config


@pytest.fixture
def policy(tiny: Path) -> Policy:
    config = load_config({"model_name_or_path": str(tiny), "dtype": "float32", "lora_rank": 4}).config
    model = config.tuning.apply(load_model(resolve(str(tiny)), config.model, place(config.model)))
    put_kernels(model, config.model)
    return Policy(model).train()


def loss_and_gradients(policy: Policy, length: int = 40) -> list[torch.Tensor]:
    batch = pack([[segment(10, length, seed)] for seed in range(3)])
    loss = Sft()(policy(batch), batch).total
    loss.backward()
    found = [loss.detach(), *(p.grad.clone() for p in policy.parameters() if p.requires_grad)]
    policy.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_recomputing_layers_changes_no_bit(policy: Policy, count: int) -> None:
    expected = loss_and_gradients(policy)
    recompute_layers(policy.model, count)
    calls: list[int] = []
    from luthier.core.anatomy import decoder_layers

    for index, layer in enumerate(decoder_layers(policy.model)):
        layer.self_attn.register_forward_hook(lambda *_, i=index: calls.append(i))
    for want, have in zip(expected, loss_and_gradients(policy), strict=True):
        assert torch.equal(want, have)
    assert [calls.count(index) for index in range(2)] == [2 if index < count else 1 for index in range(2)]


def test_offloaded_activations_come_back(policy: Policy, tmp_path: Path) -> None:
    expected = loss_and_gradients(policy, 3000)
    policy.offload = Offload(policy.model, tmp_path / "activations")
    for _ in range(2):
        for want, have in zip(expected, loss_and_gradients(policy, 3000), strict=True):
            assert torch.equal(want, have)
    written = os.fstat(policy.offload._file.fileno()).st_size
    assert written > 9000 * 32 * 4
    assert not list((tmp_path / "activations").iterdir()), "the file has no name, so that nothing is left behind"


def test_offloading_writes_no_weights(policy: Policy, tmp_path: Path) -> None:
    policy.offload = Offload(policy.model, tmp_path)
    kept = [policy.offload._write(p.detach()) for p in policy.parameters()]
    assert all(isinstance(each, torch.Tensor) for each in kept)
    assert policy.offload._end == 0


def test_budget_recomputes_as_little_as_fits(tiny: Path, rows: Path) -> None:
    free = estimate(settings(tiny, rows))
    assert free.recomputed == 0
    enough = estimate(settings(tiny, rows, memory_budget=free.peak_bytes))
    assert enough.recomputed == 0
    short = estimate(settings(tiny, rows, memory_budget=free.peak_bytes - 1))
    assert 1 <= short.recomputed <= 2
    assert short.peak_bytes < free.peak_bytes


def test_budget_is_refused_before_anything_is_written(tiny: Path, rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"all 2 layers recomputed .*; set memory_budget: [\d.]+GB") as caught:
        train(settings(tiny, rows, output_dir=str(run), memory_budget="100MB"), quiet=True)
    assert not run.exists()
    advised = str(caught.value).partition("set memory_budget: ")[2].partition(",")[0]
    train(settings(tiny, rows, output_dir=str(run), memory_budget=advised), quiet=True)
    assert run.exists()


@pytest.mark.parametrize("value", ["6", "many", "6 gallons", "10MB"])
def test_budget_wants_a_unit_and_a_sane_size(tiny: Path, rows: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="memory_budget"):
        settings(tiny, rows, memory_budget=value)


def test_saving_memory_changes_no_loss(tiny: Path, rows: Path, tmp_path: Path) -> None:
    runs = {
        "plain": {},
        "budget": {"memory_budget": "4GB"},
        "recomputed": {"gradient_checkpointing": True},
        "offloaded": {"offload_dir": str(tmp_path / "activations")},
    }
    found = []
    for name, more in runs.items():
        train(settings(tiny, rows, output_dir=str(tmp_path / name), lora_dropout=0.1, **more), quiet=True)
        found.append(losses(tmp_path / name))
        gc.collect()
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_kernels_change_no_loss(tiny: Path, rows: Path, tmp_path: Path, dropout: float) -> None:
    more = {"max_steps": 20, "lora_dropout": dropout}
    for kernels in ("auto", "off"):
        train(settings(tiny, rows, output_dir=str(tmp_path / kernels), kernels=kernels, **more), quiet=True)
    ours, plain = ([float.fromhex(v) for v in losses(tmp_path / k).values()] for k in ("auto", "off"))
    assert len(ours) == 20
    assert ours == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("more", [{}, {"finetuning_type": "freeze", "freeze_trainable_layers": 2, "lora_rank": None}])
def test_every_family_is_estimated(family_folder: Path, rows: Path, more: dict) -> None:
    """Kinds of layers that take turns, and tunings that name a number of layers, included."""
    found = estimate(settings(family_folder, rows, **more))
    assert found.memory["activations and gradients"] > 0
    assert found.seconds > 0
