"""Runs under tunings of every kind: memory settings change no loss, learning rates are those of the tuning."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import losses, make_folder
from safetensors.torch import load_file
from tunings import SMALL

from luthier.config.load import load_config
from luthier.core.errors import ConfigError
from luthier.core.registry import TUNINGS
from luthier.runs.store import read_events
from luthier.workflows.estimate import estimate
from luthier.workflows.train import train

SETTINGS = {
    "max_steps": 3, "threads": 1, "per_device_train_batch_size": 4, "plot_loss": False, "dtype": "float32", "cutoff_len": 64,
    "learning_rate": 1e-2,
}  # fmt: skip


def run(folder: Path, name: str, rows: Path, out: Path, **more) -> dict[int, float]:
    base = {**SETTINGS, "model_name_or_path": str(folder), "dataset": str(rows), "output_dir": str(out), **more}
    config = replace(load_config({**base, "finetuning_type": name}).config, tuning=SMALL[name][0])
    train(config, quiet=True)
    return {step: float.fromhex(loss) for step, loss in losses(out).items()}


@pytest.mark.parametrize("name", ["bottleneck", "prompt", "prefix", "oft", "ia3"])
def test_memory_settings_and_kernels_change_no_loss(tiny, rows, tmp_path, name: str) -> None:
    want = run(tiny, name, rows, tmp_path / "plain")
    assert run(tiny, name, rows, tmp_path / "again", gradient_checkpointing=True) == want
    assert run(tiny, name, rows, tmp_path / "disk", offload_dir=str(tmp_path)) == want
    assert run(tiny, name, rows, tmp_path / "off", kernels="off") == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("name", TUNINGS.names())
def test_every_tuning_is_estimated(tiny, rows, name: str) -> None:
    settings = {**SETTINGS, "model_name_or_path": str(tiny), "dataset": str(rows), "finetuning_type": name}
    config = replace(load_config(settings).config, tuning=SMALL[name][0])
    found = estimate(config)
    assert 0 < found.learning <= found.parameters
    assert found.peak_bytes > 0


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 5e-4),
        ({"finetuning_type": "full"}, 5e-5),
        ({"stage": "dpo"}, 5e-5),
        ({"learning_rate": 7e-3}, 7e-3),
        ({"loraplus_lr_ratio": 16, "learning_rate": 1e-3}, 1e-3),
    ],
)
def test_the_usual_learning_rate_follows_tuning_objective_and_width(rows, pairs, tmp_path, settings, rate) -> None:
    folder = make_folder("llama", tmp_path / "base")
    data = pairs if "stage" in settings else rows
    given = {
        **SETTINGS, "learning_rate": 0, "max_steps": 1, "lr_scheduler_type": "constant", "model_name_or_path": str(folder),
        "dataset": str(data), "output_dir": str(tmp_path / "run"), **settings,
    }  # fmt: skip
    train(load_config(given).config, quiet=True)
    (event,) = read_events(tmp_path / "run", "train")
    width = 1 if "learning_rate" in settings else (2000 / 32) ** 0.78
    assert event["learning_rate"] == pytest.approx(rate * width, rel=0.05)  # two digits


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_need_room_beside_the_rows(tiny, rows, tmp_path, name: str) -> None:
    with pytest.raises(ConfigError, match="cutoff_len 510 and 3 virtual tokens are more .* \\(512\\); lower .* to 509"):
        run(tiny, name, rows, tmp_path / "run", cutoff_len=510)
    assert not (tmp_path / "run").exists()
    run(tiny, name, rows, tmp_path / "run", cutoff_len=509)


def test_parameters_learn_at_rates_of_their_own(tiny, rows, tmp_path) -> None:
    """LoRA+ and embeddings: the rates in the checkpoint are those that the optimizer worked with."""
    given = {
        **SETTINGS, "max_steps": 1, "lr_scheduler_type": "constant", "learning_rate": 1e-3, "lora_rank": 2,
        "loraplus_lr_ratio": 16, "loraplus_lr_embedding": 1e-6, "additional_target": "embed_tokens",
        "model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(tmp_path / "run"),
    }  # fmt: skip
    train(load_config(given).config, quiet=True)
    state = json.loads((tmp_path / "run/checkpoint-1/state.json").read_text(encoding="utf-8"))
    assert sorted(state["learning_rates"]) == pytest.approx([1e-6, 1e-3, 16e-3])


def test_whole_modules_learn_in_float32_over_a_narrower_base(tiny, rows, tmp_path) -> None:
    """Small steps would be lost in bfloat16, and so would they on resuming."""

    def go(name: str, **more: Any) -> Path:
        given = {
            **SETTINGS, "dtype": "bfloat16", "learning_rate": 1e-4, "lora_rank": 2, "max_steps": 2, "save_steps": 1,
            "additional_target": "embed_tokens,lm_head", "model_name_or_path": str(tiny), "dataset": str(rows),
            "output_dir": str(tmp_path / name), **more,
        }  # fmt: skip
        train(load_config(given).config, quiet=True)
        return tmp_path / name

    whole = load_file(go("whole") / "adapter_model.safetensors")
    assert {whole[f"base_model.model.{name}.weight"].dtype for name in ("model.embed_tokens", "lm_head")} == {
        torch.float32
    }
    again = load_file(go("again", resume=str(tmp_path / "whole/checkpoint-1")) / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
