"""Preference rows in every spelling become the same two segments; what is no pair is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from chats import ASKED, PROMPT, SYSTEM, said, turned
from helpers import byte_tokenizer

from luthier.config.schema import DataConfig
from luthier.core.errors import DataError
from luthier.core.findings import RowError
from luthier.core.types import Example, Message
from luthier.data.pack import pack
from luthier.data.prepare import Preparer, prepare, stream_units
from luthier.data.template import ChatTemplate

GOOD, BAD = "好的 yes", "no"

OPENAI = [said("system", SYSTEM), said("user", ASKED)]
ROWS = {
    "alpaca": {"instruction": ASKED, "input": "", "system": SYSTEM, "chosen": GOOD, "rejected": BAD},
    "sharegpt": {"conversations": [turned("system", SYSTEM), turned("human", ASKED)], "chosen": turned("gpt", GOOD),
                 "rejected": turned("gpt", BAD)},
    "sharegpt, system column": {"conversations": [turned("human", ASKED)], "system": SYSTEM, "chosen": [turned("gpt", GOOD)],
                                "rejected": BAD},
    "sharegpt, whole": {"chosen": [turned("human", ASKED), turned("gpt", GOOD)], "system": SYSTEM,
                        "rejected": [turned("human", ASKED), turned("gpt", BAD)]},
    "messages and messages": {"messages": OPENAI, "chosen": said("assistant", GOOD), "rejected": said("assistant", BAD)},
    "messages and lists": {"messages": OPENAI, "chosen": [said("assistant", GOOD)], "rejected": [said("assistant", BAD)]},
    "messages and texts": {"messages": OPENAI, "chosen": GOOD, "rejected": BAD},
    "explicit": {"prompt": OPENAI, "chosen": [said("assistant", GOOD)], "rejected": [said("assistant", BAD)]},
    "implicit": {"chosen": [*OPENAI, said("assistant", GOOD)], "rejected": [*OPENAI, said("assistant", BAD)]},
    "implicit beside a prompt": {"prompt": ASKED, "chosen": [*OPENAI, said("assistant", GOOD)],
                                 "rejected": [*OPENAI, said("assistant", BAD)], "messages": OPENAI},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*rows: Any, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def audit(name: str, kind: str = "pair", **settings: Any):
    config = DataConfig(dataset=(name,), **{"cutoff_len": 256, **settings})
    return prepare((name,), Preparer(ChatTemplate(byte_tokenizer()), config, kind))


def split(segment) -> tuple[str, str]:
    """What is context, and what is learned; learned tokens are the last ones but for a line break."""
    tokenizer = byte_tokenizer()
    first = next(i for i, w in enumerate(segment.weight) if w)
    return tokenizer.decode(segment.tokens[:first]), tokenizer.decode(
        [t for t, w in zip(segment.tokens, segment.weight, strict=True) if w]
    )


@pytest.mark.parametrize("name", ROWS)
def test_each_spelling(name: str) -> None:
    store, report = audit(write(ROWS[name]))
    assert not report.findings
    chosen, rejected = store[0]
    assert split(chosen) == (PROMPT, f"{GOOD}<|im_end|>")
    assert split(rejected) == (PROMPT, f"{BAD}<|im_end|>")
    prompt = len(byte_tokenizer()(PROMPT).input_ids)
    assert chosen.tokens[:prompt] == rejected.tokens[:prompt]
    assert pack([store[0]]).spans.end == (
        prompt,
        prompt + sum(chosen.weight) - 1,
        prompt + sum(chosen.weight) + sum(rejected.weight) - 2,
    )


def test_text_prompt_is_a_user_turn() -> None:
    (chosen, _), *_ = audit(write({"prompt": ASKED, "chosen": GOOD, "rejected": BAD}))[0]
    assert split(chosen)[0] == f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"


def test_mapped_columns_and_tags() -> None:
    Path("data").mkdir()
    row = {
        "talk": [{"who": "me", "text": ASKED}],
        "better": {"who": "bot", "text": GOOD},
        "worse": {"who": "bot", "text": BAD},
    }
    Path("data/a.json").write_text(json.dumps([row]))
    Path("data/b.json").write_text(json.dumps([{"q": ASKED, "a": GOOD, "b": BAD}]))
    entries = {
        "talks": {"file_name": "a.json", "formatting": "sharegpt", "ranking": True,
                  "columns": {"messages": "talk", "chosen": "better", "rejected": "worse"},
                  "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "bot"}},
        "texts": {"file_name": "b.json", "ranking": True, "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
        "unmarked": {"file_name": "b.json", "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
        "odd": {"file_name": "b.json", "ranking": "yes"},
    }  # fmt: skip
    Path("data/dataset_info.json").write_text(json.dumps(entries))
    for name in ("talks", "texts"):
        chosen, rejected = audit(name)[0][0]
        assert (split(chosen)[1], split(rejected)[1]) == (f"{GOOD}<|im_end|>", f"{BAD}<|im_end|>")
        with pytest.raises(
            DataError, match=r"is marked as preference rows .*learns from single answers; set stage: dpo"
        ):
            audit(name, "answer")
    with pytest.raises(
        DataError, match=r"'unmarked' is not marked as preference rows, .* set ranking: true in dataset_info"
    ):
        audit("unmarked")
    with pytest.raises(DataError, match="ranking: expected true or false, found 'yes'"):
        audit("odd")
    with pytest.raises(DataError, match="'b.json' holds no preference rows .*b.json:1 has the columns q, a, b"):
        audit("b.json")
    assert len(audit("b.json", columns={"prompt": "q", "chosen": "a", "rejected": "b"})[0]) == 1


def test_the_other_kind_of_rows_is_refused() -> None:
    pairs, answers = write(ROWS["alpaca"]), write({"instruction": "a", "output": "b"}, name="sft.jsonl")
    for kind, wanted in (("answer", "single answers"), ("text", "plain text")):
        with pytest.raises(
            DataError, match=rf"rows.jsonl:1 has a chosen and a rejected answer\), but .* {wanted}; set"
        ) as e:
            audit(pairs, kind)
        assert (e.value.code, e.value.exit_code) == ("data_kind", 2)
    with pytest.raises(DataError, match=r"sft.jsonl:1 has the columns instruction, output\), but .* or set stage: sft"):
        audit(answers)
    config = DataConfig(dataset=(answers,))
    with pytest.raises(DataError, match="holds no preference rows"):
        stream_units((answers,), Preparer(ChatTemplate(byte_tokenizer()), config, "pair"))
    both = write({**ROWS["alpaca"], "output": "x"})
    assert len(audit(both, "answer", pairs=False)[0]) == 1
    with pytest.raises(DataError, match="is not marked as preference rows"):
        audit(both, pairs=False)


BAD_ROWS = {
    "missing": ({"instruction": "a", "chosen": "b"}, "[rejected] expected a column of this name, found columns instruction, chosen; map it: columns: {rejected: <your column>}"),
    "null": ({"instruction": "a", "chosen": "b", "rejected": None}, "[rejected] expected text, found null; remove the row, or set bad_rows: skip"),
    "empty": ({"messages": OPENAI, "chosen": " ", "rejected": "b"}, "[chosen] expected text, found empty text; remove the row, or set bad_rows: skip"),
    "equal": ({"instruction": "a", "chosen": "b", "rejected": "b"}, "[rejected] expected an answer other than the chosen one, found text 'b'; remove the row, or set bad_rows: skip"),
    "role": ({"messages": OPENAI, "chosen": said("user", "a"), "rejected": "b"}, "[chosen] expected role assistant after user, found role user; put the turns in order"),
    "tag": ({"conversations": [turned("human", "a")], "chosen": turned("gtp", "b"), "rejected": "c"}, "[chosen.from] expected one of human, gpt, observation, function_call, system, found text 'gtp'; did you mean 'gpt'?"),
    "prompts": ({"chosen": [said("user", "a"), said("assistant", "b")], "rejected": [said("user", "c"), said("assistant", "d")]}, "[rejected] expected the same prompt as in the chosen conversation, found text 'c'"),
    "answered": ({"messages": [*OPENAI, said("assistant", "x")], "chosen": "a", "rejected": "b"}, "[chosen] expected role user or tool after assistant, found role assistant; put the turns in order"),
    "no answer": ({"chosen": [said("user", "a")], "rejected": [said("user", "a")]}, "[chosen] expected an answer of the assistant as the last turn, found role user; remove the last turn"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_each_bad_row_has_its_sentence(name: str) -> None:
    row, message = BAD_ROWS[name]
    store, report = audit(write(ROWS["alpaca"], row))
    assert [str(finding) for finding in report.errors()] == [f"rows.jsonl:2 {message}"]
    assert len(store) == 1
    with pytest.raises(DataError, match="rows.jsonl:2"):
        report.enforce("fail")


def test_answers_behind_a_common_beginning() -> None:
    """Answers that both conversations hold are context; what follows the first difference is learned, answer by answer."""
    begin = [said("user", "a"), said("assistant", "b"), said("user", "c")]
    store, _ = audit(write({"chosen": [*begin, said("assistant", "d")],
                            "rejected": [*begin, said("assistant", "e"), said("user", "f"), said("assistant", "g")]}))  # fmt: skip
    chosen, rejected = store[0]
    assert split(chosen)[1] == "d<|im_end|>"
    assert split(rejected)[1] == "e<|im_end|>g<|im_end|>"


def test_template_that_rewrites_answers_takes_one_a_side() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last or m.role != 'assistant' else '-' }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    question, answer = Message(role="user", content="q"), Message(role="assistant", content="a")
    example = Example(context=(question,), endings=((answer,), (answer, question, answer)))
    with pytest.raises(RowError, match=r"one answer, because this template rewrites earlier ones, found 2 answers"):
        ChatTemplate(tokenizer).render(example)


def test_cut_pairs_keep_a_token_of_both_or_are_left_out() -> None:
    name = write({"instruction": "q" * 60, "chosen": "same beginning", "rejected": "same start"})
    lengths = {}
    for limit in range(60, 110):
        store, report = audit(name, cutoff_len=limit)
        kinds = dict(report.counts)
        assert kinds.keys() <= {"prompt_too_long", "equal_pair", "answer_cut"}
        lengths.setdefault(next(iter(kinds), "whole"), []).append(limit)
        for unit in store:
            assert all(sum(s.weight) >= 1 and len(s.tokens) <= limit for s in unit)
            assert unit[0].tokens != unit[1].tokens
    assert list(lengths) == ["prompt_too_long", "equal_pair", "answer_cut", "whole"]
    assert len(lengths["equal_pair"]) == len("same ")


def test_cache_keeps_kinds_apart() -> None:
    name = write({**ROWS["alpaca"], "output": "x"})
    assert len(audit(name)[0][0]) == 2
    assert len(audit(name, "answer", pairs=False)[0][0]) == 1
    assert len(audit(name)[0][0]) == 2


def test_equal_questions_with_other_answers_are_no_duplicates() -> None:
    _, report = audit(write(ROWS["alpaca"], {**ROWS["alpaca"], "rejected": "never"}, ROWS["alpaca"]))
    assert dict(report.counts) == {"duplicate": 1}
