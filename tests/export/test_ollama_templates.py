"""Every chat template becomes a Go template that says the same, or says what it cannot."""

from pathlib import Path
from typing import Any

import pytest
from chats import tokenizer_for
from helpers import byte_tokenizer
from transformers import GenerationConfig, LlamaConfig

from luthier.core.errors import ModelError
from luthier.core.types import Message, Sampling
from luthier.data.template_shelf import shelf_names
from luthier.export.go_template import ollama_prompt
from luthier.export.ollama import MODELFILE, write_ollama
from luthier.export.ollama_template import compare, go_template
from luthier.export.source import Source
from luthier.export.verify import verify_ollama
from luthier.export.verify.chats import Chats
from luthier.export.verify.ollama import read_modelfile

TALK = [Message(role="user", content="Say 你好 🙂"), Message(role="assistant", content="ok"),
        Message(role="user", content="{{ .x }} <b>\nagain")]  # fmt: skip
PLAIN = ("one turn", "many turns")


def source_of(tokenizer: Any) -> Source:
    facts = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512)
    generation = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    return Source(name="my model", facts=facts, tokenizer=tokenizer, generation=generation, weights={})


@pytest.mark.parametrize("name", shelf_names())
def test_plain_chats_of_every_template_are_exact_or_refused(name: str) -> None:
    tokenizer = tokenizer_for(name)
    try:
        made = go_template(tokenizer)
    except ModelError as error:
        assert "export_format: gguf" in str(error) or "gguf" in str(error)
        return
    faults = compare(made.text, Chats(tokenizer))
    assert not set(PLAIN) & faults.keys()
    # What differs in other cases is among what is told.
    assert len(made.lost) >= len(faults)
    wanted = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TALK], tokenize=False, add_generation_prompt=True
    )
    found = ollama_prompt(made.text, TALK)
    start = tokenizer.bos_token or ""
    assert found in (wanted, wanted.removeprefix(start)), made.text


def write(tokenizer: Any, folder: Path, system: str | None = 'Say "hi"') -> tuple[Source, list[str]]:
    source = source_of(tokenizer)
    (folder / "model.gguf").write_bytes(b"GGUF")
    how = Sampling(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1)
    return source, write_ollama(source, folder / "model.gguf", folder, system=system, parameters=how, context=256)


def test_a_folder_says_everything(tmp_path: Path) -> None:
    source, notes = write(byte_tokenizer(), tmp_path)
    file = read_modelfile((tmp_path / MODELFILE).read_text(encoding="utf-8"))
    assert file.value("from") == "./model.gguf"
    assert file.value("system") == 'Say "hi"'
    assert {name: file.value(name) for name in ("num_ctx", "temperature", "top_p", "top_k", "min_p", "repeat_penalty")} == {
        "num_ctx": "256", "temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "repeat_penalty": "1.1"}  # fmt: skip
    assert byte_tokenizer().eos_token in file.values("stop")
    assert all(any(note in comment for comment in file.notes) for note in notes)
    report = verify_ollama(tmp_path, source)
    assert not [check for check in report.checks if check.passed is False], report.table()


@pytest.mark.parametrize("damage", ["suffix", "stop", "num_ctx", "from"])
def test_what_is_wrong_is_found(damage: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_for("chatml")
    source, _ = write(tokenizer, tmp_path)
    file = tmp_path / MODELFILE
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    changed = {
        "suffix": lambda: text.replace("<|im_end|>", "<|im_start|>", 1),
        "stop": lambda: "".join(line for line in lines if not line.startswith("PARAMETER stop")),
        "num_ctx": lambda: "".join(line for line in lines if not line.startswith("PARAMETER num_ctx")),
        "from": lambda: text.replace("./model.gguf", "./other.gguf"),
    }[damage]()
    assert changed != text
    file.write_text(changed, encoding="utf-8")
    assert verify_ollama(tmp_path, source).failed


def test_no_comment_excuses_a_wrong_turn(tmp_path: Path) -> None:
    source, _ = write(tokenizer_for("chatml"), tmp_path)
    file = tmp_path / MODELFILE
    broken = file.read_text(encoding="utf-8").replace("<|im_end|>", "<|im_start|>")
    template = read_modelfile(broken).value("template")
    assert template is not None
    faults = compare(template, Chats(source.tokenizer))
    file.write_text(broken + "".join(f"# {' '.join(fault.split())}\n" for fault in faults.values()), encoding="utf-8")
    (check,) = (c for c in verify_ollama(tmp_path, source).checks if c.name == "Ollama's template")
    assert check.passed is False
