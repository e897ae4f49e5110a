"""Rows that an audit found fault with are left out of a copy; what stays is the same, byte by byte."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.data.audit import AuditReport, length_edge
from luthier.data.audit_files import keep_audit, kept_audit
from luthier.data.clean import clean
from luthier.data.sources import Source, read_rows


def audited(path: Path, **places: list[int]) -> Path:
    report = AuditReport()
    for row in range(sum(1 for _ in read_rows(Source(name="x", path=path)))):
        report.begin_row()
        for kind, rows in places.items():
            if row in rows:
                report.add(kind, "error" if kind == "broken_json" else "warning", f"{path}:{row + 1}", "is bad")
    keep_audit(path, report, 2048)
    return path


def values(path: Path) -> list[object]:
    return [row.value for row in read_rows(Source(name="x", path=path))]


ROWS = [{"instruction": f"问 {i} 🙂", "output": f"a,\u2028\n{i}"} for i in range(6)]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt", "parquet", "lines.json"])
def test_rows_are_left_out(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if suffix == "csv":
        path.write_text("\ufeffinstruction,output\n" + "".join(f'"{r["instruction"]}","{r["output"]}"\n' for r in ROWS))
    elif suffix == "txt":
        path.write_text("".join(f"line {i}\n\n" for i in range(6)))
    elif suffix == "parquet":
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    else:
        path.write_text(json.dumps(ROWS) if suffix == "json" else lines, encoding="utf-8")
    before, whole = path.read_bytes(), values(path)
    assert len(whole) == 6
    audited(path, duplicate=[1, 4], answer_cut=[0, 1])
    out = path.with_name(f"clean.{suffix}")
    shown = clean(path, ["duplicate"])
    assert (shown.before, shown.after, shown.written, out.exists()) == (6, 4, None, False)
    found = clean(path, ["duplicate", "answer_cut"], out)
    assert (found.before, found.after, found.dropped) == (6, 3, {"duplicate": 2, "answer_cut": 2})
    assert [(each["kind"], each["row"]) for each in found.examples] == [
        ("answer_cut", whole[0]),
        ("duplicate", whole[1]),
        ("duplicate", whole[4]),
    ]
    assert values(out) == [whole[2], whole[3], whole[5]]
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="there already"):
        clean(path, ["duplicate"], out)
    assert values(out) == [whole[2], whole[3], whole[5]]
    assert not list(tmp_path.glob("*.tmp"))


def test_no_rows_are_left(tmp_path: Path) -> None:
    for name, text in {"x.jsonl": '{"a": 1}\n', "x.json": '[{"a": 1}]', "x.csv": "a\n1\n"}.items():
        path = tmp_path / name
        path.write_text(text)
        audited(path, duplicate=[0])
        out = tmp_path / f"none_{name}"
        assert clean(path, ["duplicate"], out).after == 0
        assert values(out) == []


def test_broken_lines_go_too(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\r\n{"a": \r\n{"a": "\xff"}\r\n{"a": 2}')
    audited(path, broken_json=[1, 2])
    clean(path, ["broken_json"], tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"no audit of it is known; run `luthier data audit`"):
        clean(path, ["duplicate"])
    audited(path, duplicate=[0])
    with pytest.raises(DataError, match=r"no row has 'duplicat'; did you mean 'duplicate'\?"):
        clean(path, ["duplicat"])
    with pytest.raises(DataError, match="no kind given"):
        clean(path, [])
    with pytest.raises(DataError, match=r"give it that ending"):
        clean(path, ["duplicate"], tmp_path / "y.csv")
    path.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(DataError, match="changed since"):
        clean(path, ["duplicate"])


def test_kept_audits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' * 5)
    assert kept_audit(path) is None
    audited(path, duplicate=[1, 2, 3, 4], broken_json=[0])
    found = kept_audit(path)
    assert found is not None
    assert (found.badge(), found.is_stale(), found.cutoff_len) == ("errors", False, 2048)
    assert found.report["places"] == {"duplicate": [[1, 4]], "broken_json": [[0, 1]]}
    assert AuditReport.from_dict(found.report).places == {"duplicate": [1, 2, 3, 4], "broken_json": [0]}
    assert [each["row"] for each in found.report["findings"]] == [0, 1, 2, 3, 4]
    audited(path)
    assert kept_audit(path).badge() == "good"  # pyright: ignore[reportOptionalMemberAccess]
    path.unlink()
    assert kept_audit(path).is_stale()  # pyright: ignore[reportOptionalMemberAccess]
    monkeypatch.setenv("LUTHIER_CACHE", "/dev/null/nowhere")
    path.write_text("{}\n")
    keep_audit(path, AuditReport(), 1)  # said in the log, and no more
    assert kept_audit(path) is None


@pytest.mark.parametrize("suffix", ["json", "csv", "jsonl"])
def test_what_lies_behind_a_row_that_is_too_large_is_not_copied_unseen(suffix: str, tmp_path: Path) -> None:
    texts = ["a", "b", "c" * 17_000_000, "b", "d"]
    path, out = tmp_path / f"rows.{suffix}", tmp_path / f"clean.{suffix}"
    rows = [json.dumps({"text": text}) for text in texts]
    whole = {"json": f"[{', '.join(rows)}]", "jsonl": "\n".join(rows), "csv": "\n".join(["text", *texts])}
    path.write_text(whole[suffix])
    audited(path, duplicate=[3])
    if suffix == "jsonl":  # there the next row is known
        clean(path, ["duplicate"], out)
        assert values(out) == [{"text": text} for text in [*texts[:3], "d"]]
        return
    for target in (None, out):
        with pytest.raises(DataError, match=r"a row of more than 16 MB, behind which .* JSON lines") as caught:
            clean(path, ["duplicate"], target)
        assert caught.value.code == "data_row_too_large"
    assert not out.exists()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nothing_stays_open(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    audited(path, duplicate=[1])
    clean(path, ["duplicate"], tmp_path / f"first.{suffix}")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        clean(path, ["duplicate"], tmp_path / f"{number}.{suffix}")
        with pytest.raises(DataError, match="is there already"):
            clean(path, ["duplicate"], tmp_path / f"first.{suffix}")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_reports_of_earlier_versions_are_read() -> None:
    plain = AuditReport(rows=3, counts=Counter(x=1)).as_dict()
    del plain["lengths"], plain["places"]
    plain["findings"] = [{"kind": "x", "level": "note", "where": "f:1", "message": "m"}]
    report = AuditReport.from_dict(plain)
    assert (report.rows, report.findings[0].row) == (3, None)


def test_bars_of_lengths_are_narrow() -> None:
    for tokens in range(1, 5000):
        edge = length_edge(tokens)
        assert tokens <= edge <= tokens * 1.125 + 1
        assert length_edge(edge) == edge
