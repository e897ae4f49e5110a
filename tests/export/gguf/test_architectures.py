"""Every mapped architecture is computed by llama.cpp as transformers computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf_models import (
    FORMS_OF_MODELS,
    PROMPT,
    ROUNDED,
    compare,
    make_config,
    make_model,
    save,
    scaled_configs,
    source_of,
)

from luthier.export.gguf import write_gguf
from luthier.export.gguf.architectures import ARCHITECTURES
from luthier.export.source import folder_source


@pytest.mark.parametrize("name", FORMS_OF_MODELS)
def test_llama_cpp_computes_what_transformers_computes(name, llama_cpp, tmp_path) -> None:
    model = make_model(make_config(name))
    file = write_gguf(folder_source(save(model, tmp_path)), tmp_path / "model.gguf", form="f32")
    wanted = compare(llama_cpp, model, file, ROUNDED.get(name, 1e-4))
    # Were all tokens alike, anything would be equal.
    assert wanted.std() > 0.3


def test_every_rope_scaling_is_computed(llama_cpp, tmp_path) -> None:
    """And differs from none."""
    for name, config in scaled_configs().items():
        model = make_model(config)
        file = write_gguf(source_of(model), tmp_path / f"{name}.gguf", form="f32")
        scaled = compare(llama_cpp, model, file, ROUNDED.get(name.split(",")[0], 2e-4))
        plain = make_model(make_config(name.split(",")[0]))
        with torch.no_grad():
            other = plain(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1).numpy()
        assert np.abs(scaled[0] - other).max() > 0.05, name


def test_every_mapping_is_computed() -> None:
    assert {make_config(name).model_type for name in FORMS_OF_MODELS} == set(ARCHITECTURES)
