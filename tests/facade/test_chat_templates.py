"""get_chat_template: names of scripts, our templates, the user's own; what a tokenizer becomes."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer
from published import tokenizer_of as real
from transformers import AutoTokenizer

from luthier.chat_templates import CHAT_TEMPLATES, get_chat_template, remove_special_tokens
from luthier.core.errors import ConfigError
from luthier.core.types import Message
from luthier.data.template_shelf import apply_named_template
from luthier.export.go_template import ollama_prompt

SHAREGPT = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
TURNS = [
    {"role": "user", "content": "Hi 'you'\n"},
    {"role": "assistant", "content": "你好 🙂"},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "done"},
]
SHARED = [{"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"]} for t in TURNS]


def written(tokenizer: Any, turns: list[dict[str, str]] = TURNS, **options: Any) -> str:
    return tokenizer.apply_chat_template(turns, tokenize=False, **options)


@pytest.mark.parametrize(
    ("name", "spellings", "shelf"),
    [
        ("qwen3", ("qwen-3", "qwen3", "Qwen_3"), "qwen3"),
        ("qwen3", ("qwen-2.5", "qwen2.5", "qwen25", "qwen-25"), "qwen"),
        ("qwen3", ("qwen3-instruct",), "qwen3_nothink"),
        ("qwen3", ("chatml",), "chatml"),
        ("llama3_1", ("llama-3", "llama3", "llama-3.1", "llama-31", "llama-3.3", "llama_3.2"), "llama3"),
        ("gemma3", ("gemma-3", "gemma3", "gemma-3n", "gemma3n"), "gemma3"),
        ("gemma3", ("gemma", "gemma2"), "gemma"),
        ("gptoss", ("gpt-oss", "gptoss"), "gpt_oss"),
        ("llama2", ("llama",), "llama2"),
        ("llama2", ("vicuna",), "vicuna"),
        ("deepseek_v3", ("alpaca",), "alpaca"),
    ],
)
def test_names_of_scripts_give_the_templates_of_the_shelf(name: str, spellings: tuple[str, ...], shelf: str) -> None:
    tokenizer = real(name)
    count = len(tokenizer)
    apply_named_template(tokenizer, shelf)
    wanted = (written(tokenizer), tokenizer.eos_token)
    for spelling in spellings:
        assert get_chat_template(real(name), chat_template=spelling) is tokenizer
        assert (written(tokenizer), tokenizer.eos_token) == wanted, spelling
    assert len(tokenizer) == count


@pytest.mark.parametrize(("name", "template"), [("qwen3", "qwen-3"), ("gemma3", "gemma-3")])
def test_own_template_agrees_with_the_name_of_its_family(name: str, template: str) -> None:
    own = written(real(name)), written(real(name), TURNS[:1], add_generation_prompt=True)
    named = get_chat_template(real(name), template)
    assert (written(named), written(named, TURNS[:1], add_generation_prompt=True)) == own


def test_templates_that_the_shelf_has_not() -> None:
    tokenizer = real("llama2")
    get_chat_template(tokenizer, "unsloth")
    text = "<s>You are a helpful assistant to the user\n>>> User: Hi\n>>> Assistant: Yo</s>\n"
    assert written(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]) == text
    get_chat_template(tokenizer, "vicuna old")
    assert "\n### Human: again\n### Assistant: done</s>\n" in written(tokenizer)


@pytest.mark.parametrize("template", ["chatml", "unsloth", "alpaca", "auto"])
def test_mapping_takes_both_shapes_and_changes_nothing(template: str) -> None:
    tokenizer = get_chat_template(byte_tokenizer(), template)
    plain = written(tokenizer)
    get_chat_template(tokenizer, template, mapping=SHAREGPT)
    assert written(tokenizer, SHARED) == written(tokenizer) == plain
    again = tokenizer.chat_template
    get_chat_template(tokenizer, template, mapping=SHAREGPT)  # idempotent
    assert tokenizer.chat_template == again


def test_a_mapping_names_all_four() -> None:
    with pytest.raises(ConfigError, match="mapping has the keys role, content, user, assistant; found role"):
        get_chat_template(byte_tokenizer(), "chatml", mapping={"role": "from"})


def test_the_end_word_takes_the_place_of_the_end_token_without_a_new_row(said: list[str], tmp_path: Path) -> None:
    tokenizer = deepcopy(real("llama2"))
    before, plain = len(tokenizer), tokenizer("a b c")["input_ids"]
    get_chat_template(tokenizer, "chatml")
    assert (tokenizer.eos_token, tokenizer.eos_token_id, len(tokenizer)) == ("<|im_end|>", 2, before)
    assert tokenizer("a b c")["input_ids"] == plain
    ids = tokenizer(written(tokenizer), add_special_tokens=False)["input_ids"]
    assert ids.count(2) == 4
    assert "</s> is written <|im_end|> from now on; its id and its row stay" in said
    assert any("no token <|im_start|>, which is written as text" in line for line in said)
    assert pickle.loads(pickle.dumps(tokenizer)).eos_token == "<|im_end|>"
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<|im_end|>") == 2


def test_an_end_token_of_its_own_is_taken_only_where_it_is_mapped() -> None:
    own = real("gemma3").eos_token
    assert get_chat_template(real("gemma3"), "gemma", map_eos_token=False).eos_token == own
    moved = get_chat_template(real("gemma3"), "gemma")
    assert moved.eos_token == "<end_of_turn>"
    assert moved.eos_token_id == moved.convert_tokens_to_ids("<end_of_turn>")


def test_a_template_of_the_users_own() -> None:
    text = "{{ '{system_message}' }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    tokenizer = get_chat_template(byte_tokenizer(), (text, "<end>"), system_message="it's")
    assert tokenizer.eos_token == "<end>"
    assert tokenizer.eos_token_id == 258
    assert written(tokenizer, TURNS[2:]) == "it's[user]again<end>[assistant]done<end>"
    same = get_chat_template(byte_tokenizer(), (text, "eos_token"))
    assert same.eos_token == "<|im_end|>"
    with pytest.raises(ValueError, match="ends answers with '<end>' and map_eos_token is False"):
        get_chat_template(byte_tokenizer(), (text, "<end>"), map_eos_token=False)


def test_a_system_text_for_conversations_without_one() -> None:
    for template in ("chatml", "alpaca", "auto"):
        tokenizer = get_chat_template(byte_tokenizer(), template, system_message="Be 'brief'.\n")
        expected = written(tokenizer, [{"role": "system", "content": "Be 'brief'.\n"}, *TURNS])
        assert written(tokenizer) == expected
        assert "Be 'brief'." in expected
        assert "Be 'brief'." not in written(tokenizer, [{"role": "system", "content": "other"}, *TURNS])


def test_unknown_and_unfitting_names_say_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown chat template 'lama-3'; did you mean 'llama-3'\? The tokenizer brings"
    ):
        get_chat_template(byte_tokenizer(), "lama-3")
    with pytest.raises(
        ConfigError, match=r"needs the special tokens '<\|start_header_id\|>', .*take one that fits: .*chatml"
    ):
        get_chat_template(byte_tokenizer(), "llama-3.1")


def test_the_modelfile_that_belongs_to_the_template_says_the_same() -> None:
    tokenizer = get_chat_template(byte_tokenizer(), "chatml")
    template = tokenizer._ollama_modelfile.split('"""')[1]
    asked = [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Yo"),
        Message(role="user", content="x"),
    ]
    wanted = written(tokenizer, [m.as_dict() for m in asked], add_generation_prompt=True)
    assert ollama_prompt(template, asked) == wanted
    assert "PARAMETER stop" in tokenizer._ollama_modelfile


def test_the_listing_has_every_name_and_each_is_a_template() -> None:
    import jinja2.sandbox

    assert {"unsloth", "chatml", "llama-3.1", "gemma-3", "qwen3-thinking", "gpt-oss", "yi-chat"} <= set(CHAT_TEMPLATES)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    for text, end in CHAT_TEMPLATES.values():
        environment.parse(text)
        assert end


def test_a_begin_token_is_not_written_twice() -> None:
    tokenizer = real("llama2")
    assert remove_special_tokens(tokenizer, "<s>[INST] x") == "[INST] x"
    assert remove_special_tokens(byte_tokenizer(), "x") == "x"
