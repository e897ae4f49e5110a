"""Every mapped architecture is computed by llama.cpp as transformers computes it."""

from __future__ import annotations

import pytest
from gguf_models import FORMS_OF_MODELS, ROUNDED, compare, make_config, make_model, save

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


def test_every_mapping_is_computed() -> None:
    assert {make_config(name).model_type for name in FORMS_OF_MODELS} == set(ARCHITECTURES)
