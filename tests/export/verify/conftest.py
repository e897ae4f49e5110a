"""A tiny model with a tokenizer that merges, and GGUF files of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import CHATML, TINY_CONFIGS

sys.path.insert(0, str(Path(__file__).parent))

from luthier.export.gguf import write_gguf
from luthier.export.source import Source, folder_source

_TEXTS = [
    "the tea is hot in 1999 and 12345 or 2024, don't you know",
    "den Tee trinken wir um 12:30 Uhr",
    "你好 世界 你好",
]


def merging_tokenizer():
    """A byte-level BPE with GPT-2's pattern and words of several digits, which other patterns split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    backend.train_from_iterator([*_TEXTS * 3, *(str(n) for n in range(10000, 10100))], trainer)
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("verified"), merging_tokenizer()
    config = TINY_CONFIGS["llama"]()
    config.vocab_size, config.hidden_size, config.head_dim = len(tokenizer), 64, 16
    config.bos_token_id, config.pad_token_id = None, tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Far from flat, so that a wrong model says something else.
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
        # The end token has a weight of its own, so that some answers end.
        model.lm_head.weight[tokenizer.eos_token_id] *= 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(model_folder: Path) -> Source:
    return folder_source(model_folder, name="verified")


@pytest.fixture(scope="session")
def file_of(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the file of a form, written once."""
    folder = tmp_path_factory.mktemp("files")

    def get(form: str) -> Path:
        path = folder / f"{form}.gguf"
        return path if path.exists() else write_gguf(source, path, form=form)

    return get
