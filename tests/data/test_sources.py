"""Files as people have them: what is read, and what is said of what cannot be."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer

from luthier.config.schema import DataConfig
from luthier.core.errors import DataError
from luthier.data.prepare import Preparer, prepare
from luthier.data.sources import Source, find_sources, read_rows
from luthier.data.template import ChatTemplate

GOOD = {"instruction": "你好 🙂", "input": "", "output": "hi"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def audit(name: str, **settings: Any):
    settings.setdefault("cutoff_len", 128)
    config = DataConfig(dataset=(name,), **settings)
    return prepare((name,), Preparer(ChatTemplate(byte_tokenizer()), config, "answer"))


def answers(store) -> list[str]:
    tokenizer = byte_tokenizer()
    return [tokenizer.decode([t for t, w in zip(s.tokens, s.weight, strict=True) if w]) for unit in store for s in unit]


def as_text(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


WRITERS = {
    "json": lambda p, rows: p.write_text(json.dumps(rows, ensure_ascii=False, indent=1)),
    "jsonl": lambda p, rows: p.write_text("\ufeff" + as_text(rows)),
    "csv": lambda p, rows: p.write_text("instruction,output\n" + "".join(f'"{r["instruction"]}",{r["output"]}\n' for r in rows)),
    "parquet": write_table,
    "arrow": write_table,
}  # fmt: skip


@pytest.mark.parametrize("suffix", WRITERS)
def test_each_kind_of_file(suffix: str) -> None:
    rows = [{"instruction": f"你好 🙂,\n{i}", "output": f"réponse {i}"} for i in range(3)]
    path = Path(f"rows.{suffix}")
    WRITERS[suffix](path, rows)
    store, report = audit(path.name)
    assert answers(store) == [f"réponse {i}<|im_end|>" for i in range(3)]
    assert (report.rows, report.trained_rows, dict(report.counts)) == (3, 3, {})


def test_json_lines_named_json() -> None:
    Path("rows.json").write_text(as_text([GOOD, {**GOOD, "output": "ho"}]))
    assert answers(audit("rows.json")[0]) == ["hi<|im_end|>", "ho<|im_end|>"]


def test_line_separator_inside_a_string_is_no_new_line() -> None:
    Path("rows.jsonl").write_text(as_text([{**GOOD, "output": "a\u2028b"}, GOOD]))
    store, _ = audit("rows.jsonl")
    assert store.origins == ["rows.jsonl:1", "rows.jsonl:2"]


BAD_ROWS = {
    "cut off": ('{"instruction": "x", "outp', "rows.jsonl:2 expected one JSON object, found Unterminated string starting at: line 1 column 22 (char 21) (column 22); the line ends inside a value: a row is one line, and a line break within a text is written as \\n"),
    "a list": ("[1, 2]", "rows.jsonl:2 expected a JSON object, found '[1, 2]'"),
    "no column": ('{"instructions": "x", "output": "y"}', "rows.jsonl:2 [instruction] expected a column of this name, found columns instructions, output; map it: columns: {prompt: <your column>}; did you mean 'instructions'?"),
    "null": ('{"instruction": "x", "output": null}', "rows.jsonl:2 [output] expected text, found null; remove the row, or set bad_rows: skip"),
    "number": ('{"instruction": "x", "output": 3}', "rows.jsonl:2 [output] expected text, found the number '3'; remove the row, or set bad_rows: skip"),
    "empty": ('{"instruction": "x", "output": "  "}', "rows.jsonl:2 [output] expected text, found empty text; remove the row, or set bad_rows: skip"),
    "surrogate": ('{"instruction": "x", "output": "\\ud83d"}', "rows.jsonl:2 [output] expected valid Unicode, found an unpaired surrogate at character 0; write the whole character"),
    "history": ('{"instruction": "x", "output": "y", "history": [["a"]]}', "rows.jsonl:2 [history[0]] expected a pair [question, answer] of texts, found a list '['a']'"),
    "roles": ('{"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}', "rows.jsonl:2 [conversations[1]] expected role assistant after user, found role user; put the turns in order"),
    "unknown role": ('{"conversations": [{"from": "humn", "value": "a"}]}', "rows.jsonl:2 [conversations[0].from] expected one of human, gpt, observation, function_call, system, found text 'humn'; did you mean 'human'?"),
    "no answer": ('{"messages": [{"role": "user", "content": "a"}]}', "rows.jsonl:2 [messages] expected an answer of the assistant as the last turn, found role user; remove the last turn"),
    "no turns": ('{"messages": []}', "rows.jsonl:2 [messages] expected a list of messages, found a list '[]'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_each_bad_row_has_its_sentence(name: str) -> None:
    line, message = BAD_ROWS[name]
    good = as_text([GOOD])
    Path("rows.jsonl").write_text(good + line + "\n" + good)
    store, report = audit("rows.jsonl")
    assert [str(finding) for finding in report.errors()] == [message]
    assert (report.rows, report.trained_rows) == (3, 2)
    with pytest.raises(DataError) as caught:
        report.enforce("fail")
    assert message in str(caught.value)
    assert "bad_rows: skip" in str(caught.value)
    report.enforce("skip")
    assert len(store) == 2


@pytest.mark.parametrize(
    "cut", ['{"instruction": "x", "outp', '{"instruction": "x", "output": ', '{"instruction": "x"']
)
def test_a_file_ends_where_its_last_line_does(cut: str) -> None:
    Path("rows.jsonl").write_text(as_text([GOOD]) + cut)
    (last,) = audit("rows.jsonl")[1].errors()
    assert last.message.endswith("; the file ends inside a value: was the copy complete?")
    Path("rows.jsonl").write_text(cut + "\n" + as_text([GOOD]))
    (first,) = audit("rows.jsonl")[1].errors()
    assert "the line ends inside a value: a row is one line" in first.message
    assert "the file ends" not in first.message
    Path("rows.jsonl").write_text('{"instruction": x, "output": "y"}')
    (whole,) = audit("rows.jsonl")[1].errors()
    assert "ends inside" not in whole.message


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_a_line_of_any_length_is_not_held_in_memory(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.sources.LARGEST_LINE_BYTES", 4_000_000)
    path = Path(f"rows.{suffix}")
    with path.open("wb") as file:
        file.write(as_text([GOOD]).encode())
        file.seek(200_000_000)
        file.write(b"\n" + as_text([GOOD]).encode())
    tracemalloc.start()
    rows = list(read_rows(Source(name="x", path=path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.where for row in rows] == [f"{path}:{line}" for line in (1, 2, 3)]
    assert [row.value is None for row in rows] == [False, True, False]
    assert str(rows[1].finding).startswith(f"{path}:2 a line of more than 4000000 bytes; one row a line is expected")
    assert peak < 20_000_000


def test_not_utf8_names_line_byte_and_guess() -> None:
    Path("rows.jsonl").write_bytes(as_text([GOOD]).encode() + '{"instruction": "caf\xe9"}\n'.encode("latin-1"))
    (finding,) = audit("rows.jsonl")[1].errors()
    assert str(finding).startswith("rows.jsonl:2 expected UTF-8, found byte 0xe9 at 20; perhaps ")


def test_broken_list_names_the_line() -> None:
    Path("rows.json").write_text('[\n{"instruction": "a", "output": "b"},\n{"instruction": "a" "output": "b"}\n]')
    (finding,) = audit("rows.json")[1].errors()
    assert finding.where == "rows.json:3"


def test_csv_with_an_unquoted_comma() -> None:
    Path("rows.csv").write_text("instruction,output\na,b\nc,d,e\n")
    (finding,) = audit("rows.csv")[1].errors()
    assert str(finding) == "rows.csv:3 expected 2 fields, found 3; quote commas"


def test_empty_and_unreadable_sets() -> None:
    Path("rows.jsonl").write_text("\n")
    _, report = audit("rows.jsonl")
    with pytest.raises(DataError, match="the data set is empty"):
        report.enforce("fail")
    Path("rows.parquet").write_bytes(b"PAR1 no")
    assert audit("rows.parquet")[1].num_errors == 1
    Path("rows.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match="files may be .json, .jsonl, .csv"):
        audit("rows.xlsx")


def test_missing_set_names_the_nearest() -> None:
    Path("rows.jsonl").write_text(as_text([GOOD]))
    with pytest.raises(DataError, match="'rws.jsonl' is neither a file .*did you mean 'rows.jsonl'"):
        audit("rws.jsonl")


def test_every_row_too_long() -> None:
    Path("rows.jsonl").write_text(as_text([{"instruction": "x" * 200, "output": "y"}] * 2))
    _, report = audit("rows.jsonl")
    with pytest.raises(DataError, match="no row is left to train on") as caught:
        report.enforce("skip")
    assert "has no answer token within cutoff_len 128 (the row has" in str(caught.value)
    with pytest.raises(DataError, match="the template alone takes 19 tokens; set it to 83 or more") as caught:
        audit("rows.jsonl", cutoff_len=18)
    assert caught.value.code == "data_cutoff"


def test_cut_duplicate_and_special_rows_are_counted() -> None:
    rows = [GOOD, GOOD, {**GOOD, "output": "z" * 300}, {**GOOD, "output": "a <|im_end|> b"}]
    Path("rows.jsonl").write_text(as_text(rows))
    _, report = audit("rows.jsonl")
    assert dict(report.counts) == {"duplicate": 1, "answer_cut": 1, "special_text": 1}
    assert report.cut_tokens > 0
    assert "rows.jsonl:2 is the same as rows.jsonl:1" in "\n".join(report.lines())
    assert dict(audit("rows.jsonl", too_long="fail")[1].counts)["too_long"] == 1


def test_registry_of_data_sets() -> None:
    Path("data").mkdir()
    Path("data/a.json").write_text(json.dumps([{"q": f"q{i}", "a": f"a{i}"} for i in range(5)]))
    Path("data/c.json").write_text(json.dumps([{"msgs": [{"who": "me", "text": "hi"}, {"who": "bot", "text": "yo"}]}]))
    entries = {
        "mine": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}, "num_samples": 3},
        "talks": {"file_name": "c.json", "formatting": "sharegpt", "columns": {"messages": "msgs"},
                  "tags": {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "bot"}},
        "escape": {"file_name": "../secret.json"},
        "typo": {"file_nam": "a.json"},
        "gone": {"file_name": "b.json"},
    }  # fmt: skip
    Path("data/dataset_info.json").write_text(json.dumps(entries))
    assert answers(audit("mine")[0]) == ["a0<|im_end|>", "a1<|im_end|>", "a2<|im_end|>"]
    assert answers(audit("mine", max_samples=1)[0]) == ["a0<|im_end|>"]
    assert answers(audit("talks")[0]) == ["yo<|im_end|>"]
    for name, message in {"escape": "lies outside", "typo": "unknown key 'file_nam'; did you mean 'file_name'",
                          "gone": "b.json does not exist; did you mean"}.items():  # fmt: skip
        with pytest.raises(DataError, match=message):
            find_sources((name,), DataConfig())


def test_all_missing_names_are_told_together() -> None:
    with pytest.raises(DataError) as caught:
        find_sources(("one", "two"), DataConfig())
    assert "'one'" in str(caught.value)
    assert "'two'" in str(caught.value)


def test_history_and_system_stand_before_the_question() -> None:
    row = {"instruction": "c", "input": "d", "output": "e", "system": "s", "history": [["a", "b"]]}
    Path("rows.jsonl").write_text(as_text([row]))
    store, _ = audit("rows.jsonl")
    (segment,) = store[0]
    expected = "system\ns", "user\na", "assistant\nb", "user\nc\nd", "assistant\ne"
    assert byte_tokenizer().decode(segment.tokens) == "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in expected)
    assert answers(store) == ["b<|im_end|>e<|im_end|>"]


def test_cache_knows_content_and_settings(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    read = []
    from luthier.data import prepare as module

    original = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda source: read.append(source.name) or original(source))
    Path("rows.jsonl").write_text(as_text([GOOD]))
    first, _ = audit("rows.jsonl")
    again, report = audit("rows.jsonl")
    assert read == ["rows.jsonl"]
    assert again[0] == first[0]
    assert report.rows == 1
    audit("rows.jsonl", cutoff_len=100)
    Path("rows.jsonl").write_text(as_text([{**GOOD, "output": "other"}]))
    changed, _ = audit("rows.jsonl")
    assert len(read) == 3
    assert answers(changed) == ["other<|im_end|>"]


def test_rows_beyond_max_samples_are_not_read() -> None:
    Path("rows.jsonl").write_text(as_text([GOOD]) + "not json\n")
    (source,) = find_sources(("rows.jsonl",), DataConfig(max_samples=1))
    assert [row.finding for row in read_rows(source)] == [None]
