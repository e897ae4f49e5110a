"""A tiny model loaded in a quantized form, and what it computes."""

from pathlib import Path

import torch

from luthier.config.schema import ModelConfig
from luthier.models.device import place
from luthier.models.load import load_model, resolve

IDS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(0))


def settings(folder: Path, **more) -> ModelConfig:
    return ModelConfig(model_name_or_path=str(folder), **{"dtype": "float32", "device": "cpu", **more})


def load(folder: Path, **more):
    config = settings(folder, **more)
    return load_model(resolve(config.model_name_or_path), config, place(config)).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits.float()
