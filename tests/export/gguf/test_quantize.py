"""Forms that llama.cpp's quantizer makes: they load, are as near as their bits allow, and failures stay outside."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import make_config, make_model, numbers, source_of

from luthier.core.errors import ConfigError, DependencyError, ModelError, RunError
from luthier.export.gguf import FORMS, planned, quantize, quantize_file, write_gguf

HERE = [form.name for form in FORMS.values() if form.maker == "llama.cpp" and not form.needs_matrix]
RELATIVE = {"q6_k": 0.02, "q5_k_m": 0.04, "q4_k_m": 0.08, "q3_k_m": 0.16, "q2_k": 0.32, "iq4_xs": 0.1, "iq4_nl": 0.1}


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    config = make_config("llama")
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 256, 64
    return write_gguf(source_of(make_model(config)), tmp_path_factory.mktemp("half") / "half.gguf", form="bf16")


@pytest.mark.parametrize("form", HERE)
def test_forms_are_made(form, half, tmp_path, llama_cpp) -> None:
    made = quantize_file(half, tmp_path / "q.gguf", form)
    assert made.path == tmp_path / "q.gguf"
    assert made.fell_back == {}
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]
    assert gguf.GGUFReader(made.path).fields["general.file_type"].contents() == FORMS[form].file_type
    exact, found = numbers(half), numbers(made.path)
    off = np.sqrt(
        sum(((found[n] - x) ** 2).sum() for n, x in exact.items()) / sum((x**2).sum() for x in exact.values())
    )
    assert 0 < off < RELATIVE.get(form, 0.3)
    llama_cpp.ask("answer", made.path, ids=[1, 2, 3], count=1)


def test_rows_that_no_block_divides_are_told(tmp_path, caplog) -> None:
    pytest.importorskip("cyllama")
    model = make_model(make_config("llama"))
    source = source_of(model)
    half = write_gguf(source, tmp_path / "half.gguf", form="f16")
    made = quantize_file(half, tmp_path / "q.gguf", "q4_k_m")
    assert made.fell_back.keys() == {t.name for t in planned(source) if len(t.shape) > 1}
    assert made.fell_back["blk.0.ffn_down.weight"] == "f16"
    assert made.fell_back["blk.0.ffn_up.weight"] == "q5_0"


def test_what_cannot_be_made_is_refused(half, tmp_path, monkeypatch) -> None:
    out = tmp_path / "q.gguf"
    with pytest.raises(ConfigError, match="iq2_xxs is made with an importance matrix only"):
        quantize_file(half, out, "iq2_xxs")
    with pytest.raises(ConfigError, match="q8_0 is written by write_gguf"):
        quantize_file(half, out, "q8_0")
    with pytest.raises(ConfigError, match="there is no importance matrix at"):
        quantize_file(half, out, "iq2_xxs", imatrix=tmp_path / "none.gguf")
    (tmp_path / "none.gguf").write_bytes(b"no file")
    with pytest.raises(ModelError, match="cannot be read as a GGUF file"):
        quantize_file(tmp_path / "none.gguf", out, "q4_k_m")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DependencyError, match="an importance matrix is read by llama.cpp's llama-quantize"):
        quantize_file(half, out, "iq2_xxs", imatrix=half)
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(
        DependencyError, match=r"pip install 'luthier\[gguf\]' \(cyllama\), or put llama.cpp's llama-quantize"
    ):
        quantize_file(half, out, "q4_k_m")
    assert not out.exists()


def test_a_crash_is_told(half, tmp_path, monkeypatch) -> None:
    pytest.importorskip("cyllama")
    monkeypatch.setattr(quantize, "_CHILD", "import os, sys; print('broken', file=sys.stderr, flush=True); os.abort()")
    with pytest.raises(RunError, match="was ended by signal 6 on q4_k_m; nothing was kept. Its last words: broken"):
        quantize_file(half, tmp_path / "q.gguf", "q4_k_m")
    assert not list(tmp_path.iterdir())


def test_the_program_on_the_path(half, tmp_path, monkeypatch) -> None:
    """llama-quantize is asked where cyllama is missing, and for a matrix."""
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > "$0.asked"\nwhile [ $# -gt 4 ]; do shift; done\ncp "$1" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    quantize_file(half, tmp_path / "q.gguf", "iq2_xxs", imatrix=half, threads=2)
    asked = Path(f"{program}.asked").read_text().split()
    assert asked[:3] == ["--imatrix", str(half), str(half)]
    assert asked[4:] == ["IQ2_XXS", "2"]
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    quantize_file(half, tmp_path / "q.gguf", "q4_k_m")
    assert Path(f"{program}.asked").read_text().split()[0] == str(half)
