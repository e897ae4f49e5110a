"""The reader of Go templates, values of Modelfiles, and Ollama itself where there is one."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from chats import tokenizer_for
from helpers import byte_tokenizer
from transformers import GenerationConfig, LlamaConfig

from luthier.core.errors import ModelError
from luthier.core.types import Message, Sampling
from luthier.export.go_template import GoError, go_text, ollama_prompt, render_go
from luthier.export.ollama import MODELFILE, ollama_name, quoted, write_ollama
from luthier.export.ollama_template import go_template
from luthier.export.source import Source
from luthier.export.verify import verify_ollama
from luthier.export.verify.ollama import check_ollama, read_modelfile


def said(role: Any, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **more)


# ---- Go templates


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("a{{ .X }}b", "a1b"),
        ("a  {{- .X -}}  b", "a1b"),
        ("a {{- /* words }} */ -}} b", "ab"),
        ('{{ "a\\"\\n\\u4f60\\U0001f642" }}', 'a"\n你🙂'),
        ("{{ `r\\n` }}", "r\\n"),
        ("{{ if .X }}y{{ else }}n{{ end }}", "y"),
        ("{{ if .Empty }}y{{ else }}n{{ end }}", "n"),
        ("{{ if .Empty }}a{{ else if eq .X 1 }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .Empty }}a{{ else if .Empty }}b{{ else if .Empty }}c{{ else }}d{{ end }}!", "d!"),
        ("{{ range .L }}[{{ . }}]{{ end }}", "[p][q]"),
        ("{{ range $i, $v := .L }}{{ $i }}{{ $v }}{{ end }}", "0p1q"),
        ("{{ range .None }}x{{ else }}none{{ end }}", "none"),
        ("{{ range $i, $_ := .L }}{{ if eq (len (slice $.L $i)) 1 }}last{{ end }}{{ end }}", "last"),
        ("{{ (index .M 1).Role }}", "user"),
        ('{{ if and .X (not .Empty) (ne .X 2) }}{{ or .Empty "z" }}{{ end }}', "z"),
        ("{{ $a := 3 }}{{ $a = 4 }}{{ $a }}", "4"),
        ("{{ .L | len }}", "2"),
        ("{{ json .L }}", '["p","q"]'),
        ("{{ true }}{{ .Missing }}", "true"),
    ],
)
def test_what_go_makes_of_it(template: str, wanted: str) -> None:
    data = {"X": 1, "Empty": "", "L": ["p", "q"], "None": [], "M": [{"Role": "system"}, {"Role": "user"}]}
    assert render_go(template, data) == wanted


@pytest.mark.parametrize(
    "template",
    ["{{ if .X }}", "{{ end }}", "{{ .X", "{{ foo .X }}", "{{ $nothing }}", "{{ .X.Y }}", "{{ }}", "{{ (len .L }}",
     "{{ index .L 9 }}", "{{ .X ! }}", "{{ else }}"],
)  # fmt: skip
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(GoError):
        render_go(template, {"X": 1, "L": []})


def test_any_text_comes_through_template_and_modelfile() -> None:
    draw = random.Random(3)
    pieces = [
        '"',
        '"""',
        "{{",
        "}}",
        "\n",
        "\r",
        "\t",
        " ",
        "\\",
        "\u00a0",
        "\u3000",
        "\x01",
        "你",
        "🙂",
        "`",
        "#",
        "a",
        "{",
    ]
    for _ in range(400):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 9)))
        value = go_text(text) + "{{ .X }}" + go_text(text)
        file = read_modelfile(f"FROM x\nTEMPLATE {quoted(value)}\nPARAMETER num_ctx 5\n")
        assert file.value("num_ctx") == "5"
        assert render_go(file.value("template") or "", {"X": "|"}) == f"{text}|{text}"


def test_how_ollama_calls_it() -> None:
    template = "{{ .System }}/{{ range .Messages }}<{{ .Role }}:{{ .Content }}>{{ end }}{{ .IsThinkSet }}{{ .Think }}"
    turns = [said("system", "s"), said("user", "a"), said("user", "b"), said("assistant", "c"), said("system", "t")]
    wanted = "s\n\nt/<system:s><user:a\n\nb><assistant:c><system:t>"
    assert ollama_prompt(template, turns) == f"{wanted}falsefalse"
    assert ollama_prompt(template, turns, think=True) == f"{wanted}truetrue"


# ---- templates made by probing


def test_an_answer_that_is_begun_goes_on() -> None:
    made = go_template(tokenizer_for("chatml"))
    text = ollama_prompt(made.text, [said("user", "hi"), said("assistant", "Well")])
    assert text.endswith("<|im_start|>assistant\nWell")


def test_thoughts_of_a_thinking_model() -> None:
    made = go_template(tokenizer_for("qwen3"))
    off = ollama_prompt(made.text, [said("user", "hi")], think=False)
    assert off.endswith("<think>\n\n</think>\n\n")
    assert ollama_prompt(made.text, [said("user", "hi")]) == off.removesuffix("<think>\n\n</think>\n\n")
    history = [said("user", "hi"), said("assistant", "Well", reasoning="hm"), said("user", "so")]
    assert "hm" not in ollama_prompt(made.text, history)
    assert any("tools" in sentence for sentence in made.lost)


def test_a_default_system_text_is_there_only_without_another() -> None:
    tokenizer = tokenizer_for("smollm2")
    made = go_template(tokenizer)
    assert "named SmolLM" in ollama_prompt(made.text, [said("user", "hi")])
    assert "named SmolLM" not in ollama_prompt(made.text, [said("system", "x"), said("user", "hi")])
    assert "named SmolLM" not in ollama_prompt(made.text, [said("system", ""), said("user", "hi")])


def test_a_begin_token_that_the_file_adds_is_not_in_the_template() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_for("llama3")
    begin = tokenizer.bos_token
    assert begin in go_template(tokenizer).text
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert begin not in go_template(tokenizer).text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "refuses several turns"),
        ("{% for m in messages %}{{ loop.index ~ m.content }};{% endfor %}", "another way"),
        ("{{ messages[-1].content }}", "refuses several turns"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content.replace('?', '!') }}{% endfor %}<assistant>", "one turn"),
    ],
)
def test_what_cannot_be_expressed_is_refused(template: str | None, words: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=words) as caught:
        go_template(tokenizer)
    assert "export_format: gguf" in str(caught.value)


def test_what_is_lost_is_said() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'].strip()")
    assert any("blanks around a text stay" in sentence for sentence in go_template(tokenizer).lost)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
        "{{ '<' ~ m.role ~ '>' ~ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert "a system text is left out: the chat template takes none" in go_template(tokenizer).lost


# ---- Modelfiles


@pytest.mark.parametrize(
    "text", ['say "hi"', 'end"', '"begin', 'a """ b', '"""', "two\nlines", 'x"\ny', "a\n\nb", ' "" ']
)
def test_texts_that_a_modelfile_holds(text: str) -> None:
    file = read_modelfile(f"FROM ./x.gguf\nSYSTEM {quoted(text)}\nPARAMETER num_ctx 5\n")
    assert file.value("system") == text
    assert file.value("num_ctx") == "5"


@pytest.mark.parametrize("text", ['x"""\ny"', "bell\x07", "wide\u3000blank", "a\rb"])
def test_texts_that_it_does_not_hold(text: str) -> None:
    with pytest.raises(ModelError, match="Modelfile cannot hold"):
        quoted(text)


@pytest.mark.parametrize("text", ["PARAMETER x 1\n", "FROM x\nNONSENSE y\n", 'FROM x\nSYSTEM """open\n', ""])
def test_what_ollama_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"FROM|command|no end"):
        read_modelfile(text)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("My model (v1..2)", "my-model-v1.2"), ("", "model"), ("..", "model"), ("模型", "model"), ("a" * 200, "a" * 80),
     ("runs/first", "runs-first"), ("x:y@z", "x-y-z")],
)  # fmt: skip
def test_names(name: str, wanted: str) -> None:
    assert ollama_name(name) == wanted


# ---- a program called ollama


FAKE = """#!/bin/sh
echo "$@" >> "{log}"
case "$1" in
create) if [ -n "{broken}" ]; then echo "Error: no such thing" >&2; exit 1; fi; cat "$4" > "{log}.modelfile" ;;
run) printf '%s' "{answer}" ;;
esac
"""


def folder_with_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, answer: str, broken: str = "") -> Path:
    """A written folder, and a program called ollama that notes what it is asked."""
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    program = programs / "ollama"
    program.write_text(FAKE.format(log=tmp_path / "log", broken=broken, answer=answer))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    (folder / "m.gguf").write_bytes(b"GGUF")
    write_ollama(source_of(), folder / "m.gguf", folder, system=None, parameters=Sampling(), context=64)
    return folder


def source_of() -> Source:
    tokenizer = byte_tokenizer()
    facts = LlamaConfig(vocab_size=len(tokenizer))
    return Source("m", facts, tokenizer, GenerationConfig(eos_token_id=tokenizer.eos_token_id), {})


def test_ollama_is_asked_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with_program(tmp_path, monkeypatch, answer="Paris.")
    report = verify_ollama(folder, source_of())
    assert not report.failed, report.table()
    assert report.not_done == ()
    lines = (tmp_path / "log").read_text().splitlines()
    name = lines[0].split()[1]
    assert [line.split()[0] for line in lines] == ["create", *["run"] * 5, "rm"]
    assert all(line.split()[1] == name for line in lines)
    asked = read_modelfile((tmp_path / "log.modelfile").read_text())
    assert asked.value("temperature") == "0"
    assert sorted(p.name for p in folder.iterdir()) == [MODELFILE, "m.gguf"]


@pytest.mark.parametrize(
    ("more", "words"),
    [({"answer": "Paris.<|im_end|>"}, "stands in an answer"), ({"answer": ""}, "0 of 5"),
     ({"answer": "x", "broken": "y"}, "no such thing")],
)  # fmt: skip
def test_what_ollama_does_wrong(
    more: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = check_ollama(folder_with_program(tmp_path, monkeypatch, **more))
    assert check.passed is False
    assert words in check.found
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("rm ")
