"""Models that have opinions: the weights of a random one are too small to tell tokens apart."""

from pathlib import Path

import pytest
import torch
from helpers import byte_tokenizer, make_folder
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama."""
    made = make_folder("llama", tmp_path_factory.mktemp("oracle") / "model")
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    model.save_pretrained(made)
    byte_tokenizer().save_pretrained(made)
    return made
