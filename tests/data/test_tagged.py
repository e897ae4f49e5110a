"""Answers that are tagged good or bad: every spelling, every mistake, and the answers to other prompts beside them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chats import ASKED, PROMPT, SYSTEM, said, turned
from helpers import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.schema import DataConfig
from luthier.core.errors import DataError
from luthier.core.types import Example, Message, Segment
from luthier.data.pack import pack
from luthier.data.prepare import Preparer, prepare
from luthier.data.store import StoreBuilder, UnitStore
from luthier.data.tagged import with_mismatches
from luthier.data.template import ChatTemplate

ANSWER = "好的 yes"

OPENAI = [said("system", SYSTEM), said("user", ASKED)]
ROWS = {
    "alpaca": {"instruction": ASKED, "input": "", "output": ANSWER, "system": SYSTEM, "kto_tag": True},
    "sharegpt": {"conversations": [turned("system", SYSTEM), turned("human", ASKED), turned("gpt", ANSWER)], "kto_tag": True},
    "openai": {"messages": [*OPENAI, said("assistant", ANSWER)], "label": True},
    "prompt and completion in messages": {"prompt": OPENAI, "completion": [said("assistant", ANSWER)], "label": True},
    "one message": {"prompt": OPENAI, "completion": said("assistant", ANSWER), "label": True},
    "prompt in messages, completion in text": {"prompt": OPENAI, "completion": ANSWER, "label": 1},
    "a number": {"messages": [*OPENAI, said("assistant", ANSWER)], "kto_tag": 1},
    "a text": {"messages": [*OPENAI, said("assistant", ANSWER)], "kto_tag": "True"},
}  # fmt: skip
OTHER = {"instruction": "other", "output": "another answer", "kto_tag": False}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*rows: Any, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def audit(name: str, kind: str = "tagged", **more: Any):
    config = DataConfig(dataset=(name,), **{"cutoff_len": 256, **more})
    return prepare((name,), Preparer(ChatTemplate(byte_tokenizer()), config, kind))


def split(segment: Segment) -> tuple[str, str]:
    """What is context, and what is learned."""
    tokenizer = byte_tokenizer()
    first = next(i for i, w in enumerate(segment.weight) if w)
    learned = [t for t, w in zip(segment.tokens, segment.weight, strict=True) if w]
    return tokenizer.decode(segment.tokens[:first]), tokenizer.decode(learned)


@pytest.mark.parametrize("name", ROWS)
def test_each_spelling(name: str) -> None:
    store, report = audit(write(ROWS[name], OTHER))
    assert not report.findings
    first, second = store
    assert [split(s) for s in first] == [(PROMPT, f"{ANSWER}<|im_end|>"), (PROMPT, "another answer<|im_end|>")]
    assert [s.aside for s in first] == [s.aside for s in second] == [False, True]
    assert (first[0].tags, second[0].tags) == ({"desirable": 1.0}, {"desirable": 0.0})
    assert split(second[1])[1] == f"{ANSWER}<|im_end|>"
    assert report.learned_tokens == sum(first[0].weight) + sum(second[0].weight)


def test_text_prompt_is_a_user_turn() -> None:
    store, _ = audit(write({"prompt": ASKED, "completion": ANSWER, "label": False}, OTHER))
    assert split(store[0][0]) == (
        f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n", f"{ANSWER}<|im_end|>"
    )  # fmt: skip


def test_pairs_become_a_good_and_a_bad_answer() -> None:
    """The answers to one prompt are no answers to other prompts."""
    name = write(*({"instruction": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(2)))
    store, report = audit(name)
    assert (len(store), report.rows, report.trained_rows) == (4, 2, 2)
    assert [(split(a)[1][:-10], a.tags["desirable"], split(b)[1][:-10]) for a, b in store] == [
        ("good 0", 1.0, "good 1"), ("bad 0", 0.0, "good 1"), ("good 1", 1.0, "good 0"), ("bad 1", 0.0, "good 0"),
    ]  # fmt: skip


def test_a_tag_goes_before_a_pair() -> None:
    store, _ = audit(write({**ROWS["alpaca"], "chosen": "x", "rejected": "y"}, OTHER))
    assert [split(unit[0])[1] for unit in store] == [f"{ANSWER}<|im_end|>", "another answer<|im_end|>"]


def test_of_a_conversation_only_the_last_answer_is_graded() -> None:
    turns = [*OPENAI, said("assistant", "first"), said("user", "more"), said("assistant", "second")]
    store, _ = audit(write({"messages": turns, "label": True}, OTHER))
    context, learned = split(store[0][0])
    assert learned == "second<|im_end|>"
    assert "first<|im_end|>" in context


def test_a_template_that_rewrites_earlier_answers_takes_tagged_ones() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last or m.role != 'assistant' else '-' }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    question, answer = Message(role="user", content="q"), Message(role="assistant", content="a")
    example = Example(context=(question, answer, question), endings=((answer,),))
    assert len(ChatTemplate(tokenizer).render(example).unit) == 2
    assert len(ChatTemplate(tokenizer).render(replace(example, desirable=True)).unit) == 1


def test_entries_of_dataset_info() -> None:
    Path("data").mkdir()
    Path("data/a.json").write_text(
        json.dumps([{"q": ASKED, "a": ANSWER, "good": True}, {"q": "b", "a": "c", "good": False}])
    )
    Path("data/b.json").write_text(json.dumps([{"instruction": i, "chosen": i + "c", "rejected": i} for i in "ab"]))
    columns = {"prompt": "q", "response": "a"}
    entries = {
        "tagged": {"file_name": "a.json", "columns": {**columns, "kto_tag": "good"}},
        "untagged": {"file_name": "a.json", "columns": columns},
        "pairs": {"file_name": "b.json", "ranking": True},
        "unmarked": {"file_name": "b.json"},
    }
    Path("data/dataset_info.json").write_text(json.dumps(entries))
    assert [unit[0].tags["desirable"] for unit in audit("tagged")[0]] == [1.0, 0.0]
    assert [unit[0].tags["desirable"] for unit in audit("pairs")[0]] == [1.0, 0.0, 1.0, 0.0]
    for name, there in (("untagged", "q, a, good"), ("unmarked", "instruction, chosen, rejected")):
        with pytest.raises(
            DataError, match=rf"'{name}' holds no answers that are tagged .*:1 has the columns {there}\); map"
        ):
            audit(name)
    columns = {"prompt": "q", "response": "a", "kto_tag": "good"}
    assert len(audit("data/a.json", columns=columns)[0]) == 2
    assert len(audit("data/b.json", pairs=True)[0]) == 4


BAD_ROWS = {
    "no tag": ({"instruction": "a", "output": "b"}, "[kto_tag] expected a column of this name, found columns instruction, output; map it: columns: {kto_tag: <your column>}"),
    "null tag": ({"instruction": "a", "output": "b", "kto_tag": None}, "[kto_tag] expected true or false, found null; write true for good answers and false for bad ones, or set bad_rows: skip"),
    "text tag": ({"instruction": "a", "output": "b", "kto_tag": "good"}, "[kto_tag] expected true or false, found text 'good'; write true for good answers and false for bad ones, or set bad_rows: skip"),
    "number tag": ({"prompt": "a", "completion": "b", "label": -1}, "[label] expected true or false, found the number '-1'; write true for good answers and false for bad ones, or set bad_rows: skip"),
    "list tag": ({"prompt": "a", "completion": "b", "label": [True]}, "[label] expected true or false, found a list '[True]'; write true for good answers and false for bad ones, or set bad_rows: skip"),
    "empty answer": ({"instruction": "a", "output": " ", "kto_tag": True}, "[output] expected text, found empty text; remove the row, or set bad_rows: skip"),
    "empty completion": ({"prompt": "a", "completion": "", "label": True}, "[completion] expected text, found empty text; remove the row, or set bad_rows: skip"),
    "no prompt": ({"completion": "a", "label": True}, "[prompt] expected a column of this name, found columns completion, label; map it: columns: {prompt: <your column>}"),
    "completion of the user": ({"prompt": "a", "completion": [said("user", "b")], "label": True}, "[completion[0]] expected role assistant after user, found role user; put the turns in order"),
    "answered prompt": ({"prompt": [*OPENAI, said("assistant", "x")], "completion": "b", "label": True}, "[completion] expected role user or tool after assistant, found role assistant; put the turns in order"),
    "equal pair": ({"instruction": "a", "chosen": "b", "rejected": "b"}, "[rejected] expected an answer other than the chosen one, found text 'b'; remove the row, or set bad_rows: skip"),
    "types of a pair": ({"messages": OPENAI, "chosen": "b", "rejected": 3}, "[rejected] expected text, found the number '3'; remove the row, or set bad_rows: skip"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_each_bad_row_has_its_sentence(name: str) -> None:
    row, message = BAD_ROWS[name]
    store, report = audit(write(ROWS["alpaca"], row, OTHER))
    assert [str(finding) for finding in report.errors()] == [f"rows.jsonl:2 {message}"]
    assert len(store) == 2
    with pytest.raises(DataError, match="rows.jsonl:2"):
        report.enforce("fail")


def test_answers_of_one_kind_only_are_said() -> None:
    good = [{"instruction": f"q{i}", "output": f"a{i}", "kto_tag": True} for i in range(3)]
    _, report = audit(write(*good))
    assert [str(finding) for finding in report.findings] == [
        "rows.jsonl:1 and all other 2 answers are desirable; without any undesirable one, little is learned"
    ]
    _, report = audit(write(*({**row, "kto_tag": False} for row in good)))
    assert "all other 2 answers are undesirable; without any desirable one" in str(report.findings[0])


def test_the_same_answer_everywhere_is_refused() -> None:
    with pytest.raises(
        DataError, match="all answers are the same, but this objective compares with answers to other"
    ) as e:
        audit(write({**OTHER, "instruction": "a"}, {**OTHER, "instruction": "b"}))
    assert e.value.exit_code == 2
    with pytest.raises(DataError, match="all answers are the same"):
        audit(write(OTHER))


def test_as_answers_the_bad_ones_are_named() -> None:
    """Supervised fine-tuning on tagged rows works, and says which of them it should perhaps not learn."""
    name = write(ROWS["alpaca"], OTHER, {"prompt": "q", "completion": "c", "label": False},
                 {"messages": [*OPENAI, said("assistant", "fine")], "label": False})  # fmt: skip
    store, report = audit(name, "answer")
    assert len(store) == 4
    assert all(len(unit) == 1 and not unit[0].tags for unit in store)
    sentence = "is tagged as undesirable, but learned from like all others; set stage: kto, or take the row out"
    assert [str(finding) for finding in report.findings] == [f"rows.jsonl:{n} {sentence}" for n in (2, 3)]
    report.enforce("fail")


def test_as_pairs_they_are_refused() -> None:
    with pytest.raises(
        DataError, match="holds no preference rows .*; its answers are tagged one by one: set stage: kto"
    ):
        audit(write(ROWS["alpaca"]), "pair")


def test_equal_rows_with_other_tags_are_no_duplicates() -> None:
    twin = {**ROWS["alpaca"], "kto_tag": False}
    _, report = audit(write(ROWS["alpaca"], twin, OTHER, ROWS["alpaca"]))
    assert dict(report.counts) == {"duplicate": 1}


def test_long_answers_behind_long_prompts_are_cut() -> None:
    rows = [{"instruction": "q" * 40, "output": "a" * 9, "kto_tag": True}, {"instruction": "q", "output": "b" * 40, "kto_tag": False}]  # fmt: skip
    store, report = audit(write(*rows), cutoff_len=96)
    assert not report.findings
    assert len(store[0][1].tokens) == 96
    assert split(store[0][1])[1] == "b" * sum(map(bool, store[0][1].weight))


def test_the_cache_keeps_tags_and_what_is_set_aside() -> None:
    name = write(ROWS["alpaca"], OTHER)
    first, again = audit(name)[0], audit(name)[0]
    assert list(first) == list(again)
    assert [s.aside for s in again[0]] == [False, True]
    assert len(audit(name, "answer")[0][0]) == 1


# ---- which answer stands behind which prompt


def store_of(rows: list[tuple[int, int]]) -> UnitStore:
    builder = StoreBuilder()
    for number, (prompt, answer) in enumerate(rows):
        segment = Segment(tokens=[10 + prompt, 5, 20 + answer, 6], weight=[0, 0, 1, 0], tags={"desirable": 1.0})
        builder.add([replace(segment, origin=str(number))], number % 2)
    return builder.build()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_mismatches_are_the_next_ones_of_another_prompt_and_answer(rows: list[tuple[int, int]]) -> None:
    store, number = store_of(rows), len(rows)
    if len({answer for _, answer in rows}) == 1:
        with pytest.raises(DataError):
            with_mismatches(store, 8)
        return
    found = with_mismatches(store, 8)
    assert found.source_index.tolist() == store.source_index.tolist()
    assert found.lengths().tolist() == store.lengths().tolist()
    for index, (prompt, answer) in enumerate(rows):
        following = [rows[(index + step) % number] for step in range(1, number)]
        both = [b for a, b in following if b != answer and a != prompt]
        (kept, beside), origin = found[index], str(index)
        assert kept == store[index][0]
        assert beside.tokens[:2] == [10 + prompt, 5]
        assert (beside.weight, beside.aside, beside.origin) == ([0, 0, 1], True, origin)
        assert beside.tokens[2] - 20 == (both or [b for _, b in following if b != answer])[0]


def test_places_of_both_parts_are_those_of_their_batches() -> None:
    """Streams that were computed for a batch and the one beside it stand where the tokens are."""
    store = with_mismatches(store_of([(0, 0), (1, 1), (2, 2)]), 8)
    for index in range(3):
        batch = pack([store[index]])
        assert batch.aside is not None
        for part, aside in ((batch, False), (batch.aside, True)):
            tokens = store.arrays["tokens"][store.predicted(index, aside=aside)]
            assert tokens.tolist() == part.targets.tolist()
