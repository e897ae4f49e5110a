"""Every mapped architecture is computed by llama.cpp as transformers computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import FORMS_OF_MODELS, make_config, make_model, save

from luthier.core.errors import ModelError
from luthier.export.gguf import obstacle, planned, write_gguf
from luthier.export.gguf.architectures import ARCHITECTURES
from luthier.export.source import Source, Weight, folder_source

PROMPT = [(i * 37) % 256 for i in range(24)]
STEPS = 6
ENDS = [256, 258]
ROUNDED = {"gemma2": 5e-3, "gemma3": 5e-3, "gemma3, linear": 5e-3, "starcoder2": 5e-3}
"""llama.cpp looks up GELU in a table of 16-bit numbers; all else is float32 on both sides."""


def compare(llama_cpp, model, file: Path, tolerance: float, **more) -> np.ndarray:
    """Both write the same tokens, and see the same log-probability for every token of the vocabulary."""
    said = llama_cpp.ask("answer", file, ids=PROMPT, count=STEPS, **more)
    seen = torch.tensor([PROMPT + said["tokens"][:-1]])
    with torch.no_grad():
        wanted = model(seen).logits[0].log_softmax(-1)[len(PROMPT) - 1 :].numpy()
    found = np.array(said["logprobs"])
    assert found.shape == wanted.shape == (STEPS, model.config.vocab_size)
    assert np.abs(found - wanted).max() < tolerance
    # Ends of an answer are not written, so that there are as many steps as were asked for.
    assert np.delete(wanted, ENDS, axis=1).argmax(-1).tolist() == [
        id_ - sum(end < id_ for end in ENDS) for id_ in said["tokens"]
    ]
    return wanted


@pytest.mark.parametrize("name", FORMS_OF_MODELS)
def test_llama_cpp_computes_what_transformers_computes(name, llama_cpp, tmp_path) -> None:
    model = make_model(make_config(name))
    file = write_gguf(folder_source(save(model, tmp_path)), tmp_path / "model.gguf", form="f32")
    wanted = compare(llama_cpp, model, file, ROUNDED.get(name, 1e-4))
    # Were all tokens alike, anything would be equal.
    assert wanted.std() > 0.3


def test_every_mapping_is_computed() -> None:
    assert {make_config(name).model_type for name in FORMS_OF_MODELS} == set(ARCHITECTURES)
