"""Curves: what is read equals the file, whatever is broken in it, and no peak is lost when they are thinned."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from luthier.runs import event_blocks
from luthier.runs.curves import CurveCache, RunCurves, bucket_width, extremes
from luthier.runs.store import read_events


def line(seq: int, step: int, kind: str = "train", **values: float | str | None) -> str:
    return json.dumps({"seq": seq, "time": "t", "mono": seq * 0.5, "kind": kind, "step": step, **values}) + "\n"


def write(run: Path, text: str) -> RunCurves:
    (run / "events.jsonl").write_bytes(text.encode())
    found = RunCurves(run)
    found.refresh()
    return found


@pytest.fixture(params=[1 << 60, 1], ids=["lines", "columns"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Both ways of reading."""
    monkeypatch.setattr(event_blocks, "ARROW_FROM_BYTES", request.param)
    return request.param


def test_a_rare_metric_stands_beside_a_frequent_one(tmp_path: Path, way: int) -> None:
    text = "".join(
        line(2 * i + 1, i, loss=1 / i, tokens=10 * i)
        + (line(2 * i + 2, i, "eval", eval_loss=i, secret="no number") if i % 50 == 0 else "")
        for i in range(1, 201)
    )
    found = write(tmp_path, line(0, 0, "begin", after=0, total=200) + text)
    assert found.names == ["loss", "eval_loss"]
    assert found.curve("loss") == ([*range(1, 201)], [1 / i for i in range(1, 201)], 200)
    assert found.curve("eval_loss") == ([50, 100, 150, 200], [50, 100, 150, 200], 4)
    assert found.curve("eval_loss", "tokens")[0] == [500, 1000, 1500, 2000]
    assert found.curve("loss", begin=10, end=12)[0] == [10, 11, 12]
    assert found.curve("loss", "tokens", begin=95, end=120)[0] == [100, 110, 120]
    assert found.curve("nothing") == ([], [], 0)
    assert found.last_seq == 402


def test_what_is_no_number_is_a_gap_and_what_is_not_there_is_none(tmp_path: Path, way: int) -> None:
    rows = [line(1, 1, loss=1.0), line(2, 2, loss=None, nonfinite=True), line(3, 3, other=2.0), line(4, 4, loss=4.0)]
    x, y, count = write(tmp_path, "".join(rows)).curve("loss")
    assert (x, count) == ([1, 2, 4], 3)
    assert [y[0], y[2]] == [1.0, 4.0]
    assert math.isnan(y[1])
    bad = write(tmp_path, "".join([*rows, line(5, 5, loss=None, nonfinite=True)]))
    assert bad.ends("loss") == (None, 1.0, 4.0)
    assert bad.ends("other") == (2.0, 2.0, 2.0)
    assert bad.ends("nothing") == (None, None, None)


def test_a_run_that_goes_back_writes_its_steps_anew(tmp_path: Path, way: int) -> None:
    first = "".join(line(i, i, loss=float(i), tokens=i * 10) for i in range(1, 8))
    again = "".join(
        json.dumps({"seq": 10 + i, "mono": i - 4.0, "kind": "train", "step": i, "loss": -i, "tokens": i * 10}) + "\n"
        for i in range(5, 10)
    )
    begin = json.dumps({"seq": 9, "mono": 0.1, "kind": "begin", "after": 4, "total": 9}) + "\n"
    found = write(tmp_path, first + begin)
    assert found.curve("loss")[0] == [1, 2, 3, 4]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(again)
    found.refresh()
    x, y, _ = found.curve("loss")
    assert dict(zip(x, y, strict=True)) == {e["step"]: e["loss"] for e in read_events(tmp_path) if "step" in e}
    assert found.resumed == [4]
    tokens, seconds = found.curve("loss", "tokens")[0], found.curve("loss", "time")[0]
    assert tokens == sorted(tokens)
    assert seconds == [0.5, 1, 1.5, 2, *(3.5 + each for each in (1, 2, 3, 4, 5))]


def test_the_later_record_stands_without_a_word_of_a_new_beginning(tmp_path: Path, way: int) -> None:
    steps = [1, 2, 3, 4, 2, 3, 4, 4, 5]
    found = write(tmp_path, "".join(line(i, step, loss=float(i)) for i, step in enumerate(steps, 1)))
    x, y, _ = found.curve("loss")
    assert dict(zip(x, y, strict=True)) == {1: 1, 2: 5, 3: 6, 4: 8, 5: 9}


def test_every_cut_of_a_file_can_be_read_and_gone_on_from(tmp_path: Path) -> None:
    whole = "".join(line(i, i, loss=float(i), text="é🙂") for i in range(1, 4)).encode()
    for cut in range(len(whole) + 1):
        (tmp_path / "events.jsonl").write_bytes(whole[:cut])
        found = RunCurves(tmp_path)
        found.refresh()
        lines = whole[:cut].count(b"\n")
        assert (found.curve("loss")[0], found.damaged) == ([*range(1, lines + 1)], 0)
        (tmp_path / "events.jsonl").write_bytes(whole)
        found.refresh()
        assert found.curve("loss")[0] == [1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    [b"\0" * 5000 + b"\n", b"{half\n", b"[1]\n", b'"x"\n', b"\xff\xfe\n", b'{"seq": 1e999}\n', b'{"step": "a"}\n'],
)
def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, way: int, damage: bytes) -> None:
    good = [line(i, i, loss=float(i)).encode() for i in (1, 2)]
    (tmp_path / "events.jsonl").write_bytes(good[0] + damage + good[1])
    found = RunCurves(tmp_path)
    found.refresh()
    assert found.curve("loss")[0] == [1, 2]
    assert found.damaged == (0 if damage.startswith(b'{"s') else 1)


def test_a_line_as_long_as_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_blocks, "BLOCK_BYTES", 1000)
    long = json.dumps({"seq": 2, "kind": "train", "step": 2, "text": "x" * 5000}) + "\n"
    found = write(tmp_path, line(1, 1, loss=1.0) + long + line(3, 3, loss=3.0))
    assert found.curve("loss")[0] == [1, 3]
    assert found.damaged == 1
    unfinished = write(tmp_path, line(1, 1, loss=1.0) + long[:-1])
    assert unfinished.curve("loss")[0] == [1]


@pytest.mark.parametrize("size", [200, 1000, 5000])
def test_blocks_come_in_their_order_and_say_where_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    events = [line(i, i, loss=1.0) for i in range(1, 40)]
    lines = [*events[:20], "x" * 3000 + "\n", line(20, 20, kind="begin", after=10), *events[20:]]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(lines) + '{"half')
    monkeypatch.setattr(event_blocks, "BLOCK_BYTES", size)

    blocks = list(event_blocks.read_blocks(path, 0))
    steps = np.concatenate([block.step for block in blocks]).tolist()
    assert (steps, sum(block.damaged for block in blocks)) == ([*range(1, 40)], 1)
    ends = [block.end for block in blocks]
    assert ends == sorted(set(ends))
    assert len(ends) > 1
    assert ends[-1] == sum(map(len, lines))
    seen = 0
    for block in blocks:
        seen += len(block.step)
        assert path.read_bytes()[: block.end].count(b'"train"') == seen
        later = [float(step) for each in event_blocks.read_blocks(path, block.end) for step in each.step]
        assert later == steps[seen:]


def test_a_run_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    found = write(tmp_path, "".join(line(i, i, loss=1.0) for i in range(1, 6)))
    (tmp_path / "events.jsonl").unlink()
    found.refresh()
    (tmp_path / "new").write_text(line(1, 1, other=2.0) * 9)
    (tmp_path / "new").rename(tmp_path / "events.jsonl")
    found.refresh()
    assert found.names == ["other"]


def plain_extremes(steps: list[int], values: list[float], width: int) -> set[int]:
    """The specification: per bucket the first least, the first greatest and the first gap; and both ends."""
    kept = {0, len(steps) - 1}
    for bucket in {step // width for step in steps}:
        inside = [i for i, step in enumerate(steps) if step // width == bucket]
        numbers = [i for i in inside if not math.isnan(values[i])]
        if numbers:
            kept |= {min(numbers, key=lambda i: values[i]), max(numbers, key=lambda i: values[i])}
        kept |= set([i for i in inside if math.isnan(values[i])][:1])
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_thinning_keeps_what_the_specification_keeps(seed: int) -> None:
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(2000), 300))
    values = [math.nan if draw.random() < 0.1 else draw.choice([0.0, 1.0, draw.gauss(0, 1)]) for _ in steps]
    width = 1 << draw.randrange(9)
    found = extremes(np.array(steps, float), np.array(values), width)
    assert found.tolist() == sorted(plain_extremes(steps, values, width))


def test_many_points_are_thinned_the_same_with_extremes_known_beforehand(tmp_path: Path) -> None:
    draw = random.Random(1)
    values = [draw.gauss(0, 1) for _ in range(120_000)]
    text = [line(i, i, loss=value) for i, value in enumerate(values, 1)]
    growing = write(tmp_path, "".join(text[:70_001]))
    before = growing.curve("loss", points=200)
    assert bucket_width(70_001, 200) == bucket_width(90_000, 200) == 1024
    (tmp_path / "events.jsonl").write_text("".join(text[:90_000]))
    growing.refresh()
    x, y, count = growing.curve("loss", points=200)
    assert count == 90_000
    whole = set(zip(x, y, strict=True))
    old = {(a, b) for a, b in zip(before[0], before[1], strict=True) if a < 70_001 // 1024 * 1024}
    assert old <= whole, "old points moved"
    exact = extremes(np.arange(1, 90_001, dtype=float), np.array(values[:90_000]), 1024)
    assert x == (exact + 1).tolist()
    x, y, count = growing.curve("loss", points=300, begin=1000, end=80_000)
    places = extremes(np.arange(1000, 80_001, dtype=float), np.array(values[999:80_000]), bucket_width(79_001, 300))
    assert x == (places + 1000).tolist()
    assert max(y) == max(values[999:80_000])


def test_only_so_many_runs_are_kept(tmp_path: Path) -> None:
    runs = [tmp_path / str(i) for i in range(4)]
    for run in runs:
        run.mkdir()
        (run / "events.jsonl").write_text(line(1, 1, loss=1.0))
    cache = CurveCache(most_runs=2)
    first = cache.of(runs[0])
    assert cache.of(runs[0]) is first
    for run in runs[1:]:
        cache.of(run)
    assert cache.of(runs[0]) is not first
    assert CurveCache().of(tmp_path / "gone").names == []
