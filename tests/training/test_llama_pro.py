"""Blocks that are added answer as before, learn alone, and make an ordinary model with more layers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import losses, stop_after
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, Interrupted
from luthier.runs.store import read_events
from luthier.tuning.freeze import Freeze
from luthier.tuning.lora import Lora
from luthier.tuning.parts.blocks import evenly, expand
from luthier.workflows.estimate import estimate
from luthier.workflows.train import train

IDS = torch.arange(1, 12)[None]


@torch.no_grad()
def test_every_family_answers_as_before(every_family_folder: Path, tmp_path: Path) -> None:
    """Exactly, before and after the larger model was written and read again."""
    model = AutoModelForCausalLM.from_pretrained(every_family_folder).eval()
    before = model(IDS, use_cache=False).logits
    if model.config.model_type == "minicpm3":  # its residuals are scaled by the number of layers
        with pytest.raises(ConfigError, match="would differ at model.layers.0.*follow a rule"):
            expand(model, 2)
        return
    expand(model, 2)
    assert model.config.expanded_layers == [1, 3]
    assert torch.equal(model(IDS, use_cache=False).logits, before)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert len(evenly(again, 2)) == 2
    assert torch.equal(again(IDS, use_cache=False).logits, before)


@pytest.fixture
def model(tiny: Path):
    return AutoModelForCausalLM.from_pretrained(tiny)


def learning(model) -> set[str]:
    return {name.partition("layers.")[2].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def test_only_what_was_added_learns(model) -> None:
    assert learning(Freeze(expand=1).apply(model)) == {"2"}
    assert learning(Freeze(expand=1).apply(model)) == {"2"}  # as when a run goes on: it is there already
    assert learning(Lora(llama_pro=True).apply(model)) == {"2"}


def test_models_that_others_expanded(model) -> None:
    """Of four equal layers, the second and the fourth were added."""
    expand(model, 2)
    del model.config.expanded_layers
    assert learning(Freeze(llama_pro=True, layers=2).apply(model)) == {"1", "3"}
    with pytest.raises(ConfigError, match="the 4 layers of this model do not fall into 3 equal parts"):
        Freeze(llama_pro=True, layers=3).apply(model)


def test_mistakes(model) -> None:
    with pytest.raises(ConfigError, match="expand_layers is 3, but the 2 layers of this model do not fall"):
        expand(model, 3)
    expand(model, 1)
    with pytest.raises(ConfigError, match="expand_layers is 2, but 1 layers were added to this model before"):
        expand(model, 2)
    with pytest.raises(
        ConfigError, match=r"1 layers were added to this model, but 3 shall learn; set freeze_trainable_layers: 1"
    ):
        Freeze(llama_pro=True, layers=3).apply(model)
    with pytest.raises(ConfigError, match="both choose layers"):
        Lora(llama_pro=True, layers_to_transform=(0,)).apply(model)


def settings(model: Path, rows: Path, run: Path, **more):
    fixed = {"learning_rate": 1e-2, "max_steps": 4, "per_device_train_batch_size": 4, "cutoff_len": 128, "save_steps": 1,
             "plot_loss": False, "dtype": "float32", "threads": 1, "use_llama_pro": True}  # fmt: skip
    return load_config(
        {**fixed, "model_name_or_path": str(model), "dataset": str(rows), "output_dir": str(run), **more}
    ).config


def test_a_run_stops_goes_on_and_is_trained_further(tiny: Path, rows: Path, tmp_path: Path, monkeypatch) -> None:
    more = {"finetuning_type": "freeze", "expand_layers": 1}
    train(settings(tiny, rows, tmp_path / "whole", **more), quiet=True)
    expected = losses(tmp_path / "whole")
    assert len(set(expected.values())) == 4
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tiny, rows, tmp_path / "run", **more), quiet=True)
    train(settings(tiny, rows, tmp_path / "run", resume="must", **more), quiet=True)
    assert losses(tmp_path / "run") == expected

    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    new = {name for name in after if name not in before}
    assert all(name.startswith("model.layers.2.") for name in new)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["model.layers.2.self_attn.o_proj.weight"].abs().sum() > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.num_hidden_layers == 3

    train(settings(tmp_path / "run", rows, tmp_path / "lora", finetuning_type="lora", lora_rank=4), quiet=True)
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {name.partition("layers.")[2].split(".")[0] for name in names} == {"2"}
    assert read_events(tmp_path / "lora", "train")[0]["loss"] == pytest.approx(
        read_events(tmp_path / "run", "train")[-1]["loss"], rel=0.2
    )


@pytest.mark.parametrize(
    ("more", "learning_layers"),
    [
        ({"finetuning_type": "freeze", "expand_layers": 1}, 1),
        ({"finetuning_type": "freeze", "expand_layers": 2}, 2),
        ({"finetuning_type": "freeze", "use_llama_pro": True, "freeze_trainable_layers": 2}, 2),
        ({"finetuning_type": "freeze", "use_llama_pro": True, "freeze_trainable_layers": 1}, 1),
    ],
)
def test_memory_counts_the_blocks_that_learn(tiny: Path, rows: Path, tmp_path: Path, more, learning_layers) -> None:
    config = settings(tiny, rows, tmp_path / "run", **more)
    found = estimate(config)
    layer = AutoModelForCausalLM.from_pretrained(tiny).model.layers[0]
    assert found.learning == learning_layers * sum(p.numel() for p in layer.parameters())
    # Two moments in float32 of each weight that learns.
    assert found.memory["optimizer"] == pytest.approx(8 * found.learning, rel=0.05)


def test_a_budget_holds_for_blocks_that_are_added(tiny: Path, rows: Path, tmp_path: Path) -> None:
    more = {"finetuning_type": "freeze", "expand_layers": 1, "memory_budget": "4GB"}
    train(settings(tiny, rows, tmp_path / "run", **more), quiet=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.expanded_layers == [2]


@pytest.mark.parametrize("more", [{"expand_layers": 1}, {"use_llama_pro": True, "freeze_trainable_layers": 1}])
def test_memory_of_a_model_that_has_its_blocks_already(tiny: Path, rows: Path, tmp_path: Path, more) -> None:
    train(settings(tiny, rows, tmp_path / "run", finetuning_type="freeze", expand_layers=1), quiet=True)
    found = estimate(settings(tmp_path / "run", rows, tmp_path / "next", finetuning_type="freeze", **more))
    layer = AutoModelForCausalLM.from_pretrained(tmp_path / "run").model.layers[0]
    assert found.learning == sum(p.numel() for p in layer.parameters())
    assert found.memory["optimizer"] == pytest.approx(8 * found.learning, rel=0.05)


@pytest.mark.parametrize("tuning", [Lora(rank=4, llama_pro=True), Freeze(layers=-1, llama_pro=True)])
def test_a_number_of_blocks_that_is_none_is_said(tiny: Path, rows: Path, tmp_path: Path, tuning: Lora | Freeze) -> None:
    config = replace(settings(tiny, rows, tmp_path / "run"), tuning=tuning)
    with pytest.raises(ConfigError, match="do not fall into (0|-1) equal parts"):
        estimate(config)


def test_layers_that_are_chosen_by_number_are_estimated(tiny: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(tiny, rows, tmp_path / "run", finetuning_type="lora")
    every, second = (replace(config, tuning=Lora(rank=4, layers_to_transform=layers)) for layers in ((), (1,)))
    assert 2 * estimate(second).learning == estimate(every).learning
