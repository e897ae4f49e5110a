"""Keys that say how to train: each does what it says, is left out with its reason, or is refused."""

import pytest

from luthier.config.load import load_config
from luthier.core.errors import ConfigError

BASE = {"model_name_or_path": "m", "dataset": "d"}
FULL = {**BASE, "finetuning_type": "full"}


def read(**more):
    return load_config({**FULL, **more}).config


def refused(**more) -> str:
    with pytest.raises(ConfigError) as raised:
        read(**more)
    return str(raised.value)


@pytest.mark.parametrize(("key", "optim"), [
    ("use_galore", "galore_adamw"), ("use_apollo", "apollo_adamw"), ("use_badam", "badam"), ("use_adam_mini", "adam_mini"), ("use_muon", "muon"),
])  # fmt: skip
def test_switches_of_optimizers(key: str, optim: str) -> None:
    assert read(**{key: True}).train.optim == optim
    assert read(**{key: True, "optim": "adamw_torch"}).train.optim == optim
    assert read(**{"optim": "adamw_torch", key: True}).train.optim == optim
    assert read(**{key: False}).train.optim == "adamw_torch"


def test_two_optimizers_name_both() -> None:
    assert "use_apollo and use_galore (given) both set train.optim; keep one" in refused(
        use_galore=True, use_apollo=True
    )
    assert "optim and use_badam (given) both set train.optim" in refused(use_badam=True, optim="sgd")


def test_optimizers_for_whole_weights() -> None:
    with pytest.raises(ConfigError, match="save memory where whole weights learn, but here an adapter does"):
        load_config({**BASE, "use_galore": True})


def test_optimizers_that_are_not_here_say_why() -> None:
    assert "cannot clip the gradient" in refused(optim="lomo")
    assert "cannot" not in refused(optim="adamm")
    assert read(use_badam=True, badam_mode="layer").train.badam_switch_interval == 50
    assert read(use_badam=True, badam_mode="ratio").train.badam_switch_interval == 100
    assert read(use_badam=True, badam_mode="ratio", badam_switch_interval=7).train.badam_switch_interval == 7


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_steps_layer_by_layer_are_the_same_update(name: str) -> None:
    loaded = load_config({**FULL, f"use_{name}": True, f"{name}_layerwise": True})
    assert loaded.config == read(**{f"use_{name}": True})
    assert any(f"{name}_layerwise is left out: the update is the same" in each for each in loaded.notices)
    loaded = load_config({**FULL, "optim": f"{name}_adamw_layerwise"})
    assert loaded.config == read(optim=f"{name}_adamw")
    assert f"{name}_adamw_layerwise is read as {name}_adamw: the update is the same" in loaded.notices[0]


def test_every_training_argument_of_transformers_has_an_answer() -> None:
    """Honoured, left out with a line, or refused with a reason; none is an unknown key."""
    from dataclasses import fields

    from transformers import Seq2SeqTrainingArguments

    from luthier.config import compat
    from luthier.config.load import homes

    answered = {*homes(), *compat.RENAMED, *compat.SWITCHES, *compat.IGNORED, *compat.REFUSED, *compat.ONLY}
    assert [each.name for each in fields(Seq2SeqTrainingArguments) if each.name not in answered] == []


def test_every_optimizer_of_transformers_has_an_answer() -> None:
    from transformers.training_args import OptimizerNames

    from luthier.config.optimizers import NOT_HERE

    for name in OptimizerNames:
        if name.value in NOT_HERE:
            assert NOT_HERE[name.value] in refused(optim=name.value)
        else:
            assert read(optim=name.value)


FLAT = {
    "logging_strategy": "epoch", "logging_first_step": True, "eval_delay": 2, "compute_accuracy": True, "val_size": 3,
    "metric_for_best_model": "accuracy", "greater_is_better": True, "neftune_noise_alpha": 5, "tf32": True, "project": "p",
}  # fmt: skip


def test_settings_of_the_loop_are_taken() -> None:
    train = read(**FLAT).train
    assert {key: getattr(train, key) for key in FLAT if key != "val_size"} == {
        k: v for k, v in FLAT.items() if k != "val_size"
    }


def test_noise_where_it_makes_no_sense() -> None:
    assert "answers that were not noisy" in refused(neftune_noise_alpha=5, stage="grpo")
    assert "learns virtual ones" in refused(neftune_noise_alpha=5, finetuning_type="prompt")
    assert "metric_for_best_model needs evaluation rows" in refused(metric_for_best_model="loss")


def test_trackers(tmp_path, monkeypatch) -> None:
    from luthier.config.training import TrainConfig
    from luthier.core.errors import DependencyError
    from luthier.training import trackers

    assert trackers.trackers(TrainConfig(report_to=("tensorboard",))) == ["tensorboard"]
    assert "tensorboard" in trackers.trackers(TrainConfig(report_to=("all",)))
    with pytest.raises(ConfigError, match="report_to: wandbb is no tracker; there are aim, clearml"):
        trackers.trackers(TrainConfig(report_to=("wandbb",)))
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(DependencyError, match="swanlab is not installed; run: pip install swanlab"):
        trackers.trackers(TrainConfig(use_swanlab=True))
    told = trackers.tracker_settings(TrainConfig(run_name="r", swanlab_project="p", swanlab_mode="local"))
    assert told["swanlab"] == {"project": "p", "experiment_name": "r", "mode": "local"}
    assert told["wandb"] == {"name": "r"}


def test_references_and_reward_models() -> None:
    assert read(stage="dpo", ref_model_adapters="a,b").model.ref_model_adapters == ("a", "b")
    assert "ref_model is set, but this objective compares with no reference" in refused(ref_model_adapters="a")
    assert read(stage="ppo", reward_model="a", reward_model_adapters="b").rollout.reward_folder == "b"
    assert read(stage="ppo", reward_model="a", reward_model_type="oft").rollout.reward_folder == "a"
    asked = read(stage="ppo", reward_model="https://x/v1/score", reward_model_type="api").rollout
    assert (asked.reward_folder, asked.reward_address) == (None, "https://x/v1/score")
    assert read(stage="ppo", ppo_whiten_rewards=True).objective.whiten_rewards
    assert read(stage="dpo", pref_bco_weight=0.5).objective.bco_weight == 0.5
