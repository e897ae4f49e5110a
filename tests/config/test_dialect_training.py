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
    assert "whole layers take turns" in refused(use_badam=True, badam_mode="ratio")
    assert read(use_badam=True, badam_mode="layer").train.optim == "badam"
