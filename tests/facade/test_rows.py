"""Conversations from rows, and which tokens of a prepared trainer are learned."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from helpers import byte_tokenizer
from published import tokenizer_of as real

from luthier.chat_templates import (
    apply_chat_template,
    get_chat_template,
    standardize_data_formats,
    standardize_sharegpt,
    to_sharegpt,
    train_on_responses_only,
)
from luthier.core.errors import ConfigError, DataError
from luthier.facade.chat_parts import Markers, parts_of

CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")


# ---- one shape of turns


def test_sharegpt_rows_become_turns_of_role_and_content() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b 🙂"}]
    rows = Dataset.from_dict({"conversations": [turns] * 3, "source": ["x"] * 3})
    done = standardize_sharegpt(rows)
    assert done[0]["conversations"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b 🙂"},
    ]
    assert done[2]["source"] == "x"
    assert standardize_data_formats(done)[0] == done[0]  # once more changes nothing


def test_fields_are_told_by_how_many_values_they_have() -> None:
    rows = Dataset.from_dict(
        {"conversations": [[{"t": f"q{i}", "w": "input"}, {"t": f"a{i}", "w": "output"}] for i in range(4)]}
    )
    assert standardize_sharegpt(rows)[1]["conversations"] == [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
    ]


def test_rows_that_cannot_be_standardized(said: list[str]) -> None:
    plain = Dataset.from_dict({"text": ["a"]})
    assert standardize_sharegpt(plain) is plain
    assert "no column conversations: the dataset stays as it is" in said
    odd = Dataset.from_dict({"conversations": [[{"from": "humann", "value": "a"}, {"from": "gpt", "value": "b"}]]})
    with pytest.raises(TypeError, match="role 'humann', which is none of system, user, .*did you mean 'human'"):
        standardize_sharegpt(odd)
    assert standardize_sharegpt(odd, aliases_for_user=["humann"])[0]["conversations"][0]["role"] == "user"
    three = Dataset.from_dict({"conversations": [[{"a": "1", "b": "2", "c": "3"}]]})
    with pytest.raises(DataError, match="have the fields a, b, c; expected two"):
        standardize_sharegpt(three)


def test_streams_are_standardized_too() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "bb"}]
    rows = Dataset.from_dict({"conversations": [turns]}).to_iterable_dataset()
    assert next(iter(standardize_sharegpt(rows)))["conversations"][0] == {"role": "user", "content": "a"}


# ---- questions of several columns

PEOPLE = {"name": ["Ada", "", None], "age": [36, 7, 9], "out": ["yes", "no", None]}


def test_columns_fill_a_question_and_empty_ones_take_their_part_away() -> None:
    rows = Dataset.from_dict(PEOPLE)
    done = to_sharegpt(
        rows, merged_prompt="[[Name: {name}.\n]]Age {age} {x}".replace(" {x}", ""), output_column_name="out"
    )
    said = [[turn["value"] for turn in row] for row in done["conversations"]]
    assert said == [["Name: Ada.\nAge 36", "yes"], ["Age 7", "no"], ["Age 9", ""]]
    assert done.column_names == ["conversations"]
    assert [turn["from"] for turn in done[0]["conversations"]] == ["human", "gpt"]


def test_braces_in_values_stay() -> None:
    rows = Dataset.from_dict({"instruction": ["{output} [[x]]"], "output": ["y"]})
    assert to_sharegpt(rows)[0]["conversations"][0]["value"] == "{output} [[x]]"


def test_conversations_are_extended_by_drawn_rows() -> None:
    rows = Dataset.from_dict({"instruction": [f"q{i}" for i in range(9)], "output": [f"a{i}" for i in range(9)]})
    done = to_sharegpt(rows, conversation_extension=3, random_state=1)
    firsts = [[turn["value"] for turn in row][::2] for row in done["conversations"]]
    assert [each[0] for each in firsts] == [f"q{i}" for i in range(9)]
    assert all(len(each) == 3 for each in firsts)
    assert sorted(each[1] for each in firsts) == sorted(each[2] for each in firsts) == [f"q{i}" for i in range(9)]
    assert done["conversations"][:] == to_sharegpt(rows, conversation_extension=3, random_state=1)["conversations"][:]
    assert done["conversations"][:] != to_sharegpt(rows, conversation_extension=3, random_state=2)["conversations"][:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"merged_prompt": "{nme}"}, "no column 'nme'; did you mean 'name'"),
        ({"output_column_name": "oout", "merged_prompt": "{name}"}, "no column 'oout'; did you mean 'out'"),
        ({"merged_prompt": "hello", "output_column_name": "out"}, "names no column"),
        (
            {"merged_prompt": "{name}", "output_column_name": "out", "conversation_extension": 0},
            "it is a number of rows",
        ),
    ],
)
def test_wrong_questions_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_sharegpt(Dataset.from_dict(PEOPLE), **options)


# ---- a template by example

EXAMPLES = {
    "alpaca": (
        "Tasks.\n\n### Instruction:\n{INPUT}\n\n### Response:\n{OUTPUT}\n\n### Instruction:\n{INPUT}\n\n### Response:\n{OUTPUT}",
        "Tasks.\n\n### Instruction:\na\n\n### Response:\nb<|im_end|>\n\n### Instruction:\nc\n\n### Response:\nd<|im_end|>",
    ),
    "once": (
        "Tasks.\n\n### Instruction:\n{INPUT}\n\n### Response:\n{OUTPUT}",
        "Tasks.\n\n### Instruction:\na\n\n### Response:\nb<|im_end|>\n\n### Instruction:\nc\n\n### Response:\nd<|im_end|>",
    ),
    "system": (
        "{SYSTEM}\nUSER: {INPUT}\nASSISTANT: {OUTPUT}\nUSER: {INPUT}\nASSISTANT: {OUTPUT}",
        "Be.\nUSER: a\nASSISTANT: b<|im_end|>\nUSER: c\nASSISTANT: d<|im_end|>",
    ),
    "chatml": (
        "<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{INPUT}<|im_end|>\n<|im_start|>assistant\n{OUTPUT}<|im_end|>\n"
        "<|im_start|>user\n{INPUT}<|im_end|>\n<|im_start|>assistant\n{OUTPUT}<|im_end|>\n",
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n",
    ),
    "chatml, once": (
        "<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{INPUT}<|im_end|>\n<|im_start|>assistant\n{OUTPUT}<|im_end|>\n",
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n",
    ),
}
TURNS = [("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]


@pytest.mark.parametrize("shape", ["sharegpt", "roles"])
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_an_example_becomes_a_template(name: str, shape: str) -> None:
    example, wanted = EXAMPLES[name]
    tokenizer = byte_tokenizer()
    rows = Dataset.from_dict({"conversations": [[{"from": who, "value": text} for who, text in TURNS]]})
    rows = standardize_sharegpt(rows) if shape == "roles" else rows
    done = apply_chat_template(rows, tokenizer, chat_template=example, default_system_message="Be.")
    assert done[0]["text"] == wanted
    ids = tokenizer(wanted)["input_ids"]
    markers = Markers(tokenizer, *parts_of(tokenizer))
    ends = "\n" if "chatml" in name else ""
    learned = [tokenizer.decode(ids[begin:end]) for begin, end in markers.spans(ids)]
    assert [text.strip() for text in learned] == ["b<|im_end|>", "d<|im_end|>"]
    assert learned[1] == "d<|im_end|>" + ends
    assert tokenizer._ollama_modelfile is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{INPUT}", "has {INPUT} 1 times and {OUTPUT} 0 times"),
        ("{INPUT}:{OUTPUT}\n{INPUT}->{OUTPUT}", "asks for answers in two ways: ':' and '->'"),
        ("{OUTPUT} {INPUT} {OUTPUT} {INPUT}", "is read as {INPUT} {OUTPUT} {INPUT} {OUTPUT}"),
        ("{text} {INPUT} {OUTPUT}", "{text} cannot stand in a chat template"),
    ],
)
def test_examples_that_cannot_be_read(text: str, said: str) -> None:
    rows = Dataset.from_dict({"conversations": [[{"role": "user", "content": "a"}]]})
    with pytest.raises(ConfigError, match=said.replace("{", r"\{")):
        apply_chat_template(rows, byte_tokenizer(), chat_template=text)
    with pytest.raises(ConfigError, match="needs a column conversations or messages; found x"):
        apply_chat_template(Dataset.from_dict({"x": ["y"]}), byte_tokenizer())


# ---- what stands in front of turns

ANSWERS = ["Yo 你好 🙂", "\n two lines\n"]
CHAT = [
    {"role": "user", "content": "Hi [INST] assistant\n"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": ANSWERS[1]},
]


@pytest.mark.parametrize(
    ("name", "template", "parts", "end"),
    [
        ("qwen3", None, CHATML, "<|im_end|>\n"),
        ("qwen3", "qwen-2.5", CHATML, "<|im_end|>\n"),
        (
            "llama3_1", "llama-3.1",
            ("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
            "<|eot_id|>",
        ),
        ("gemma3", None, ("<start_of_turn>user\n", "<start_of_turn>model\n"), "<end_of_turn>\n"),
        ("llama2", "unsloth", (">>> User: ", ">>> Assistant: "), "</s>\n"),
        ("llama2", "mistral", ("[INST] ", " [/INST] "), "</s>"),
        ("deepseek_v3", None, ("<｜User｜>", "<｜Assistant｜>"), "<｜end▁of▁sentence｜>"),
        ("gptoss", "gpt-oss", ("<|start|>user<|message|>", "<|start|>assistant"), None),
    ],
)  # fmt: skip
def test_parts_are_found_and_answers_are_the_templates_byte_for_byte(
    name: str, template: str | None, parts: tuple[str, str], end: str | None
) -> None:
    tokenizer = real(name)
    if template is not None:
        get_chat_template(tokenizer, template)
    assert parts_of(tokenizer) == parts
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    learned = [tokenizer.decode(ids[a:b]).replace("</s> ", "</s>") for a, b in Markers(tokenizer, *parts).spans(ids)]
    if end is None:
        assert learned == [
            f"<|channel|>final<|message|>{ANSWERS[0]}<|end|>",
            f"<|channel|>final<|message|>{ANSWERS[1]}<|return|>",
        ]
        return
    assert learned[0] == ANSWERS[0] + end
    assert learned[1].endswith(
        ANSWERS[1].strip() + end if name == "gemma3" or name.startswith("llama3") else "lines\n" + end
    )
    assert len(learned) == 2


def test_a_token_that_is_partly_marker_is_no_answer() -> None:
    tokenizer = real("llama3_1")
    ids = tokenizer("### Q:\nx\n### A:\n\nfoo", add_special_tokens=False)["input_ids"]  # "\n\n" is one token
    (span,) = Markers(tokenizer, "### Q:\n", "### A:\n").spans(ids)
    assert tokenizer.decode(ids[slice(*span)]) == "foo"


# ---- a trainer's rows


def trainer(model: Any, tokenizer: Any, texts: list[str], held_out: Any = None, **options: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        eval_dataset=held_out,
        args=SFTConfig(output_dir="out", max_length=96, bf16=False, use_cpu=True, report_to="none", max_steps=1,
                       per_device_train_batch_size=2, **options),
    )  # fmt: skip


def texts_of(tokenizer: Any, count: int = 4) -> list[str]:
    chats = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] * 2 for i in range(count)
    ]
    return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]


def shown(tokenizer: Any, labels: list[int]) -> str:
    return "".join("\0" if i == -100 else tokenizer.decode([i]) for i in labels)


def learned(row: dict[str, Any], tokenizer: Any) -> list[str]:
    return [part for part in shown(tokenizer, row["labels"]).split("\0") if part]


def test_train_and_held_out_rows_are_masked_exactly(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    texts = texts_of(tokenizer)
    held_out = {"one": Dataset.from_dict({"text": texts[:1]}), "two": Dataset.from_dict({"text": texts[1:]})}
    done = train_on_responses_only(trainer(model, tokenizer, texts, held_out))
    for i in range(4):
        row = done.train_dataset[i]
        assert tokenizer.decode(row["input_ids"]) == texts[i]
        assert learned(row, tokenizer)[0] == f"a{i}<|im_end|>\n"
        assert shown(tokenizer, row["labels"]).count("a") == 2
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    assert learned(done.eval_dataset["two"][0], tokenizer)[0].startswith("a1<|im_end|>")
    batch = next(iter(done.get_train_dataloader()))
    assert (batch["labels"] == -100).any()
    assert (batch["labels"] != -100).any()
    done.train()


def test_given_parts_and_the_last_answer_only(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    done = train_on_responses_only(trainer(model, tokenizer, texts_of(tokenizer)), *CHATML, last_response_only=True)
    assert [part[:2] for part in learned(done.train_dataset[3], tokenizer)] == ["a3"]
    make = train_on_responses_only(None, *CHATML, tokenizer=tokenizer, return_function=True)
    ids = tokenizer(texts_of(tokenizer))["input_ids"]
    assert learned({"labels": make({"input_ids": ids})["labels"][2]}, tokenizer)[0] == "a2<|im_end|>\n"


def test_packed_rows_are_masked_row_by_row(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    # A row that ends inside its question: the next one's question must not become its answer.
    texts = ["<|im_start|>assistant\n", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>"]
    done = train_on_responses_only(trainer(model, tokenizer, texts, packing=True, packing_strategy="bfd"))
    row = done.train_dataset[0]
    assert sum(row["seq_lengths"]) == len(row["labels"])
    assert [part for part in learned(row, tokenizer) if part != "<|im_end|>"] == ["a<|im_end|>"]


def test_a_marker_that_is_in_no_row_is_named_with_the_nearest_text(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    prepared = trainer(model, tokenizer, texts_of(tokenizer))
    with pytest.raises(DataError, match=r"train_dataset: no row has an answer .*response_part '<\|im_start\|>asistant.n' is in no "
                                        r"row; nearest: '<\|im_start\|>assista"):  # fmt: skip
        train_on_responses_only(prepared, "<|im_start|>user\n", "<|im_start|>asistant\n")
    with pytest.raises(ValueError, match="give both instruction_part and response_part, or neither"):
        train_on_responses_only(prepared, response_part="x")


def test_rows_without_an_answer_are_counted_and_left_out(plain: tuple[Any, Any], said: list[str]) -> None:
    model, tokenizer = plain
    done = train_on_responses_only(trainer(model, tokenizer, [*texts_of(tokenizer), "plain text", "more of it"]))
    assert len(done.train_dataset) == 4
    assert "train_dataset: 2 of 6 rows have no answer to learn from and are left out" in said


def test_parts_that_apply_chat_template_kept_are_used(plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    rows = Dataset.from_dict({"conversations": [[{"from": who, "value": text} for who, text in TURNS]]})
    rows = apply_chat_template(rows, tokenizer, chat_template="Q: {INPUT}\nA: {OUTPUT}")
    prepared = trainer(model, tokenizer, rows["text"][:])
    with pytest.raises(ValueError, match="apply_chat_template has kept"):
        train_on_responses_only(prepared, "Q: ", "A: ")
    done = train_on_responses_only(prepared)
    assert learned(done.train_dataset[0], tokenizer) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_collator_that_makes_labels_of_its_own_gives_way(plain: tuple[Any, Any]) -> None:
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    model, tokenizer = plain
    prepared = trainer(model, tokenizer, texts_of(tokenizer))
    prepared.data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)
    done = train_on_responses_only(prepared)
    assert isinstance(done.data_collator, DataCollatorForSeq2Seq)
    assert (next(iter(done.get_train_dataloader()))["labels"] == -100).any()
