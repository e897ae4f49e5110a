"""Rows by place: the same ones as training reads, in the same order, whatever the file looks like."""

import csv
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from luthier.core.errors import DataError
from luthier.data import row_scan
from luthier.data.row_index import RowFile, RowFiles
from luthier.data.sources import Source, read_rows

CHINESE = {"instruction": "你好，世界 🙂👩‍👩‍👧", "output": "第一行\n第二行\u2028第三行\u0085"}


def indexed(path: Path) -> RowFile:
    rows = RowFile(path)
    rows.build()
    return rows


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*rows: object, end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


MANY = [{"instruction": f"question {i}", "output": "x" * (i % 7)} for i in range(50)]
FILES = {
    "plain.jsonl": jsonl(CHINESE, *MANY),
    "blanks.jsonl": "\n" + jsonl(*MANY[:3]) + "\n   \n\t\n" + jsonl(CHINESE) + "\n",
    "no_end.jsonl": jsonl(*MANY[:3]).rstrip("\n"),
    "crlf.jsonl": jsonl(CHINESE, *MANY[:5], end="\r\n"),
    "mark.jsonl": "\ufeff" + jsonl(CHINESE, MANY[1]),
    "empty.jsonl": "",
    "list.json": json.dumps([CHINESE, *MANY]),
    "indented.json": "\ufeff  " + json.dumps([CHINESE, {"a": ["]", "}", '\\"', {"b": []}]}, *MANY], indent=2),
    "lines.json": jsonl(CHINESE, *MANY),
    "nothing.json": " [ ] ",
    "words.txt": "one\n\n  \u3000\ntwo\u2028still two\r\n你好",
    "plain.csv": "instruction,output\r\na,b\r\n\r\nc,d\r\n",
    "fields.csv": '\ufeffinstruction,output\n"line one\nline two, ""quoted""",ok\n\n你好,"x\r\ny"\nlast,row\u2028here\n',
    "old_ends.csv": "instruction,output\ra,b\rc,d\r",
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_training(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, FILES[name])
    expected = list(read_rows(Source(name=name, path=path)))
    rows = indexed(path)
    assert rows.total == len(expected)
    found = rows.rows(0, 1000)
    assert [row.value for row in found] == [row.value for row in expected]
    assert [f"{path}:{row.line}" for row in found] == [row.where for row in expected]
    for place, row in enumerate(expected):
        assert rows.rows(place, 1)[0].value == row.value
    assert RowFile(path).rows(1, 2) == found[1:3]  # without an index


def test_broken_rows_are_shown_as_text(tmp_path: Path) -> None:
    lines = [b'{"a": 1}', b'{"a": ', b'{"a": "\xff"}', b"[1]", b'{"a": 2}']
    rows = indexed(write(tmp_path / "x.jsonl", b"\n".join(lines))).rows(0, 9)
    assert [row.value for row in rows] == [{"a": 1}, '{"a": ', '{"a": "\\xff"}', "[1]", {"a": 2}]
    assert [bool(row.broken) for row in rows] == [False, True, True, True, False]
    assert "0xff at 7" in rows[2].broken
    assert [row.line for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ['[{"a": "unclosed', '[{"a": [1, 2}', "[1, 2,, x }", '["\\"\\"\\"', "7", "[,]", "[{}"])
def test_damaged_lists_end(text: str, tmp_path: Path) -> None:
    rows = indexed(write(tmp_path / "x.json", text))
    assert all(row.broken for row in rows.rows(0, 100) if row.value != {})


def test_a_long_unclosed_list_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", '[{"a": "' + '\\"' * 2_000_000)
    began = time.monotonic()
    assert indexed(path).total == 1
    assert time.monotonic() - began < 5


def test_rows_of_csv_that_have_too_many_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 'a,b\n1,2,3\n4,5\n"6,7\n')
    rows = indexed(path).rows(0, 9)
    assert (rows[0].broken, rows[0].value) == ("expected 2 fields, found 3; quote commas", "1,2,3\n")
    assert rows[1].value == {"a": "4", "b": "5"}
    assert rows[2].broken


def test_tables(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.table({"n": list(range(5000)), "who": [{"name": f"你{i}"} for i in range(5000)]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=700)
    with pyarrow.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=999)
    for name in ("x.parquet", "x.arrow"):
        rows = indexed(tmp_path / name)
        assert rows.total == 5000
        assert [row.value["n"] for row in rows.rows(690, 20)] == list(range(690, 710))
        assert rows.rows(4999, 5)[0].value == {"n": 4999, "who": {"name": "你4999"}}
        assert rows.rows(5000, 5) == []
        assert rows.find("你4321", 0, 5, 30.0) == ([4321], None)


def test_damaged_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.parquet cannot be read as a table"):
        _ = indexed(write(tmp_path / "x.parquet", b"PAR1 nothing")).total


def test_a_search_in_a_table_reads_no_further_than_it_has_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.table({"n": list(range(5000))})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=500)
    with pyarrow.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
        file.write(table.combine_chunks().to_batches()[0])
    for name, most in (("x.parquet", 2), ("x.arrow", 1)):
        found, portions = indexed(tmp_path / name), list[int]()
        real = found.table()._portion
        monkeypatch.setattr(
            found.table(), "_portion", lambda at, real=real, seen=portions: (seen.append(at), real(at))[1]
        )
        assert found.find("7", 0, 2, 10.0) == ([7, 17], 18)
        assert found.find("502", 0, 1, 10.0) == ([502], 503)
        assert len(portions) <= 1 + most


def test_search(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path, jsonl(*MANY, {"a": "Straße 你好"}) + json.dumps({"a": "你好 escaped"}) + "\n")
    rows = indexed(path)
    assert rows.find("你好", 0, 10, 5.0) == ([50, 51], None)
    assert rows.find("QUESTION 4", 0, 3, 5.0) == ([4, 40, 41], 42)
    assert rows.find("question 4", 42, 3, 5.0) == ([42, 43, 44], 45)
    assert rows.find("nowhere", 0, 3, 5.0) == ([], None)
    assert rows.find("nowhere", 0, 3, -1.0) == ([], 1), "no time left: says where it stopped"


def test_a_changed_file_is_indexed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "x.jsonl", jsonl(*MANY[:3]))
    files = RowFiles()
    before = files.open(path)
    assert before.wait(10)
    assert before.total == 3
    assert files.open(path) is before
    write(path, jsonl(*MANY[:9]))
    after = files.open(path)
    assert after.wait(10)
    assert after.total == 9
    assert len(list((tmp_path / "cache/rows").iterdir())) == 1, "the index of the old version is gone"
    with path.open("a") as file:
        file.write(jsonl(CHINESE))
    assert files.open(path).rows(9, 1)[0].value == CHINESE


def test_the_index_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", jsonl(*MANY))
    first = indexed(path)
    monkeypatch.setattr("luthier.data.row_index._make", lambda *_: pytest.fail("made twice"))
    assert indexed(path).entries(0, 100) == first.entries(0, 100)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(write(tmp_path / "a_file", "")))
    assert indexed(write(tmp_path / "x.jsonl", jsonl(*MANY))).total == 50


def test_lines_lead_to_rows(tmp_path: Path) -> None:
    rows = indexed(write(tmp_path / "x.jsonl", FILES["blanks.jsonl"]))
    assert [rows.row_of_line(line) for line in (1, 2, 3, 4, 5, 8, 99)] == [None, 0, 1, 2, None, 3, None]


def test_what_is_no_file_of_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows are read from .*jsonl"):
        RowFile(write(tmp_path / "x.docx", "x"))
    with pytest.raises(DataError, match="no plain file"):
        RowFile(tmp_path / "gone.jsonl")


def test_large_files_open_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["instruction", "output"])
        writer.writerows([f"question {i}", f"two\nlines {i}"] for i in range(100_000))
    rows, began = RowFile(path), time.monotonic()
    assert len(rows.rows(0, 100)) == 100
    rows.build()
    assert time.monotonic() - began < 10, "seconds, not minutes, on any machine"
    assert rows.total == 100_000
    assert rows.rows(99_999, 1)[0].value == {"instruction": "question 99999", "output": "two\nlines 99999"}
    assert np.load(next(iter(Path(path).parent.glob("cache/rows/*.npy")))).shape == (100_000, 3)


def test_a_row_of_five_megabytes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", jsonl({"a": "x" * 5_000_000}, MANY[0], {"a": "y" * 17_000_000}))
    rows = indexed(path).rows(0, 3)
    assert (len(rows[0].value["a"]), rows[1].value, rows[0].broken) == (5_000_000, MANY[0], "")
    assert len(rows[2].value) == 100_000
    assert rows[2].broken.startswith("a row of more than 16 MB; one JSON object a line is expected")


@pytest.mark.parametrize("name", ["sparse.jsonl", "sparse.txt", "sparse.csv", "sparse.json"])
def test_a_line_of_any_length_takes_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"a": 1}\n')
    with path.open("r+b") as file:
        file.truncate(150_000_000)
    tracemalloc.start()
    found = RowFile(path)
    found.build()
    rows = found.rows(0, 3)
    found.find("nothing", 0, 10, 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.total == len(rows)
    assert [bool(row.broken) for row in rows] == ([True] if path.suffix == ".csv" else [False, True])
    assert peak < 100_000_000


TEN_GB = 10_000_000_000


@pytest.mark.parametrize(
    ("name", "start", "rows", "said"),
    [
        ("x.jsonl", '[{"a": "', 1, "one JSON object a line is expected. A list"),
        ("second.jsonl", '{"a": 1}\n{"a": "', 2, "one JSON object a line is expected"),
        (
            "x.json",
            '[{"a": "',
            1,
            "nothing behind it is shown where the file is a list. Large data is kept as JSON lines",
        ),
        ("second.json", '[{"a": 1}, [', 2, "jq -c '.[]' FILE.json > FILE.jsonl"),
        ("lines.json", '{"a": 1}\n{"a": "', 2, "Large data is kept as JSON lines"),
        ("x.csv", "a\n1\n", 2, "A quote that is never closed"),
        ("quote.csv", 'a\n1\n"', 2, "A quote that is never closed"),
        ("header.csv", "a", 1, "nothing behind it is shown"),
        ("x.txt", "one\n", 2, "one text a line is expected"),
    ],
)
def test_ten_gigabytes_in_one_row(tmp_path: Path, name: str, start: str, rows: int, said: str) -> None:
    path = write(tmp_path / name, start)
    with path.open("r+b") as file:
        file.truncate(TEN_GB)
    tracemalloc.start()
    began = time.monotonic()
    file = RowFile(path)
    found = file.rows(0, 100)
    if path.suffix == ".csv":
        file.header()
    seconds, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [bool(row.broken) for row in found] == [False] * (rows - 1) + [True]
    assert found[-1].broken.startswith("a row of more than 16 MB; ")
    assert said in found[-1].broken
    assert len(found[-1].value) == 100_000
    assert seconds < 10, "the rest of it was read"
    assert peak < 150_000_000
    _, stopped = file.find("nowhere", 0, 5, 10.0)
    assert stopped == rows, "what lies behind is not known yet"


def test_rows_behind_a_row_that_is_too_large(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", jsonl(MANY[0], {"a": "y" * 17_000_000}, MANY[1], MANY[2]))
    file = RowFile(path)
    assert len(file.rows(0, 100)) == 2, "so far it was read"
    file.build()
    found = file.rows(0, 100)
    assert [row.line for row in found] == [1, 2, 3, 4]
    assert [bool(row.broken) for row in found] == [False, True, False, False]
    assert file.find("question 2", 0, 5, 10.0) == ([3], None)
    with path.open("rb") as raw:
        assert sum(map(len, file.parts(raw, file.entries(1, 1)[0]))) == 17_000_009


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_elements_are_the_same_however_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    path = write(tmp_path / name, FILES[name])
    expected = [row.value for row in read_rows(Source(name=name, path=path))]
    monkeypatch.setattr(row_scan, "PART_BYTES", size)
    found = RowFile(path).rows(0, 100)
    assert [row.value for row in found] == expected


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_lines_are_the_same_however_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = tmp_path / "x.jsonl"
    text = b'{"a": 1}\r\n\n \r\n{"b": 22}\n\r\r\n  {"c": "\xe4\xbd\xa0"} \r\n{"d": 4}'
    path.write_bytes(text)
    monkeypatch.setattr(row_scan, "PART_BYTES", size)
    found = RowFile(path).entries(0, 10)
    assert [(text[begin:end].strip(), line) for begin, end, line in found] == [
        (b'{"a": 1}', 1), (b'{"b": 22}', 4), (b'  {"c": "\xe4\xbd\xa0"}'.strip(), 6), (b'{"d": 4}', 7)
    ]  # fmt: skip
    assert not any(text[begin:end].endswith((b"\r", b"\n")) for begin, end, _ in found)
