"""The index of runs: equal to the folders, quick, and made anew from them whatever happens to its file."""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from curves import HEALTHY, write
from indexed_runs import STATUS, event, ids, make

from luthier.core.errors import RunError
from luthier.runs import facts, notes, trash
from luthier.runs.index import Index
from luthier.runs.job_files import JobSpec
from luthier.runs.jobs import Jobs
from luthier.runs.process import Identity


def test_the_newest_comes_first_and_what_is_no_run_is_left_out(index: Index) -> None:
    rows, total = index.search()
    assert ([row.id for row in rows], total) == (["c", "b", "a"], 3)
    first = rows[2]
    assert (first.model, first.data, first.objective, first.tuning) == (
        "smollm2-135m",
        ["tickets.jsonl"],
        "sft",
        "lora",
    )
    assert (first.step, first.total, first.state, first.seconds) == (3, 3, "done", 12.5)
    assert first.created == first.updated == 1767225600.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "cba"),
        ("rank:16", "a"),
        ("lora_rank:16", "a"),
        ("tuning.rank:16", "a"),
        ("rank:1", ""),
        ("alpha:16", "cba"),
        ("learning_rate:1e-4", "ca"),
        ("learning_rate:0.00002", "b"),
        ("qwen", "c"),
        ("SMOLLM2 dpo", "b"),
        ("smollm2 dpo rank:16", ""),
        ("stage:dpo", "b"),
        ("tuning:full", "c"),
        ("state:failed", "b"),
        ("dataset:tickets.jsonl", "cba"),
        ("tag:good", ""),
        ("%", ""),
        ("' OR 1=1 --", ""),
        ('"', "cba"),
    ],
)
def test_search(index: Index, text: str, found: str) -> None:
    assert "".join(ids(index.search(text))) == found


def test_words_of_notes_and_tags_in_any_language(index: Index, root: Path) -> None:
    notes.change(root / "a", name="Größe: erster Versuch", notes="比较学习率的实验", tags=["good", "für später"])
    assert index.refresh() == ["a"]
    for text in ("GRÖSSE", "erster versuch", '"erster versuch"', "学习率", "tag:good", "good", 'tag:"für später"'):
        assert ids(index.search(text)) == ["a"], text
    assert ids(index.search(tag=["good", "other"])) == ["a"]
    assert index.tags() == ["für später", "good"]
    assert index.search("good")[0][0].name == "Größe: erster Versuch"


def test_filters_order_and_pages(index: Index, root: Path) -> None:
    assert ids(index.search(state="failed")) == ["b"]
    assert ids(index.search(state="failed,done", sort="name", descending=False)) == ["a", "b", "c"]
    assert ids(index.search(objective=["sft"])) == ["c", "a"]
    assert (ids(index.search(start=1, count=1)), index.search(start=1, count=1)[1]) == (["b"], 3)
    notes.change(root / "a", pinned=True)
    notes.change(root / "b", archived=True)
    assert sorted(index.refresh()) == ["a", "b"]
    assert ids(index.search()) == ["a", "c"]
    assert ids(index.search(archived=True)) == ["b"]
    assert ids(index.search(archived=None)) == ["a", "c", "b"]
    with pytest.raises(RunError, match=r"no column 'lose'; did you mean 'loss'"):
        index.search(sort="lose")


def test_the_model(index: Index) -> None:
    assert index.models() == ["Qwen3-1.7B", "smollm2-135m"]
    assert ids(index.search(model=["smollm2-135m"])) == ["b", "a"]
    assert ids(index.search(model=["smollm2-135m"], objective="dpo")) == ["b"]
    assert ids(index.search(model=["smollm2"])) == []
    assert ids(index.search(model=[""])) == ["c", "b", "a"]


@pytest.fixture
def east_of_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine eight hours east of Greenwich."""
    monkeypatch.setenv("TZ", "CST-8")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        ("", "", "cba"),
        ("2026-01-02T00:00:00Z", "", "cb"),
        ("2026-01-02T00:00:01Z", "", "c"),
        ("", "2026-01-02T00:00:00Z", "a"),
        ("1767312000", "", "cb"),
        ("1767312000.5", "", "c"),
        ("", "1767312000.5", "ba"),
        # Midnight in Greenwich is eight in the morning here, of the same day.
        ("2026-01-02", "2026-01-02", "b"),
        ("2026-01-02", "", "cb"),
        ("", "2026-01-02", "ba"),
        ("2026-01-02T08:00", "2026-01-02T08:00:01", "b"),
        ("2026-01-02T08:01", "", "c"),
        ("2026-01-02 09:00+09:00", "2026-01-02T01:00:01+01", "b"),
        (" 2026-W01-5 ", "", "cb"),
        ("20260102", "20260102", "b"),
        ("2026-01-03", "2026-01-01", ""),
    ],
)
@pytest.mark.usefixtures("east_of_here")
def test_the_days_that_runs_were_created_on(index: Index, since: str, until: str, found: str) -> None:
    assert "".join(ids(index.search(since=since, until=until))) == found


@pytest.mark.parametrize(
    "wrong", ["yesterday", "2026-02-30", "2026-1-1", "nan", "-inf", "1e999", "9999-12-31", " ", "2026"]
)
def test_what_is_no_date(index: Index, wrong: str) -> None:
    with pytest.raises(RunError, match=r"^until: '.*' is no date; write 2026-03-31") as caught:
        index.search(until=wrong)
    assert caught.value.code == "run_date"


def test_a_run_that_was_deleted_or_renamed_under_the_index_is_followed(index: Index, root: Path) -> None:
    trash.delete(root, "b")
    (root / "c").rename(root / "d")
    assert sorted(index.refresh()) == ["b", "c", "d"]
    assert ids(index.search()) == ["d", "a"]
    trash.undelete(root, "b")
    assert index.row("b").state == "failed"
    assert index.row("c") is None
    assert ids(index.search()) == ["d", "b", "a"]


def test_one_row_is_read_as_its_files_say_now(index: Index, root: Path) -> None:
    notes.change(root / "a", name="renamed")
    assert index.row("a").name == "renamed"
    assert index.refresh() == []


# ---- metrics


def test_last_and_best_values_are_those_of_the_file(tmp_path: Path) -> None:
    lines = [event(i, "train", step=i, loss=3.0 - i / 10, mono=i * 1.0) for i in range(1, 11)]
    lines.insert(5, event(90, "eval", step=5, eval_loss=1.5))
    lines.append(event(91, "eval", step=10, eval_loss=1.8))
    run = make(tmp_path, "r", events="".join(lines), step=10)
    index = Index(tmp_path)
    row = index.row("r")
    assert (row.loss, row.best, row.best_metric, row.seconds) == (2.0, 1.5, "eval_loss", 12.5)
    with (run / "events.jsonl").open("a") as file:
        file.write(
            event(92, "begin", after=4, total=20) + event(93, "train", step=5, loss=None, nonfinite=True, mono=7.0)
        )
        file.write(event(94, "eval", step=6, eval_loss=1.7, mono=9.0) + '{"seq": 95, "kind": "ev')
    row = index.row("r")
    # The evaluation of step 5 belongs to steps that were taken back; the last loss was no number.
    assert (row.loss, row.best, row.seconds) == (None, 1.7, 19.0)
    with (run / "events.jsonl").open("a") as file:
        file.write('al", "step": 7, "eval_loss": 0.5}\n')
    assert index.row("r").best == 0.5


def test_a_metric_that_shall_rise(tmp_path: Path) -> None:
    lines = "".join(event(i, "eval", step=i, eval_loss=9 - i, eval_reward=r) for i, r in enumerate([0.1, 0.7, 0.3], 1))
    make(tmp_path, "r", events=lines)
    make(tmp_path, "s", events=lines, config={"train": {"metric_for_best_model": "loss"}})
    index = Index(tmp_path)
    assert (index.row("r").best_metric, index.row("r").best) == ("eval_reward", 0.7)
    assert (index.row("s").best_metric, index.row("s").best) == ("eval_loss", 6)


def test_only_what_is_new_of_a_million_lines_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, "r", events="".join(event(i, "train", step=i, loss=1.0) for i in range(20_000)), state="running",
               process=Identity.here().as_dict())  # fmt: skip
    index = Index(tmp_path)
    index.refresh()
    with (run / "events.jsonl").open("a") as file:
        file.write(event(20_000, "train", step=20_000, loss=0.25))
    lines: list[bytes] = []
    parsed = facts._parsed
    monkeypatch.setattr(facts, "_parsed", lambda line: [lines.append(line), parsed(line)][1])
    row = index.row("r")
    assert (row.loss, row.step) == (0.25, 3)
    assert {json.loads(line)["step"] for line in lines if line} == {20_000}
    # A file that was replaced is read from its beginning.
    (run / "new").write_text(event(1, "train", step=1, loss=4.0))
    (run / "new").rename(run / "events.jsonl")
    assert index.row("r").loss == 4.0


@pytest.mark.parametrize("usual", [1, 2, 50])
def test_steps_that_are_passed_over_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: int) -> None:
    draw = random.Random(usual)
    lines = [event(1, "begin", mono=0.0, after=0)]
    for step in range(1, 400):
        lines.append(event(2 * step, "train", step=step, mono=step / 7 % 9, loss=draw.choice([0.5, None, 1 / step])))
        if step % usual == draw.randrange(usual):
            lines.append(draw.choice([event(2 * step + 1, "eval", step=step, eval_loss=draw.random(), mono=step / 7 % 9),
                                      event(2 * step + 1, "begin", after=step // 2, mono=0.1), "{half\n", "\n",
                                      event(2 * step + 1, "note", text='"kind": "train"')]))  # fmt: skip
    path = tmp_path / "events.jsonl"
    path.write_text("".join(lines) + '{"seq": 999')
    whole = facts.Reading()
    whole.read_on(path)
    assert whole.offset == len("".join(lines).encode())
    for block, few in [(4 << 20, 100), (2000, 700), (64, 1)]:
        monkeypatch.setattr(facts, "_BLOCK_BYTES", block)
        monkeypatch.setattr(facts, "_LINES_BYTES", few)
        found = facts.Reading()
        found.read_on(path)
        assert (found.step, found.loss, found.points, found.offset) == (
            whole.step,
            whole.loss,
            whole.points,
            whole.offset,
        )


def test_a_million_steps_are_not_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(event(step, "train", step=step, loss=0.5, mono=step) for step in range(1, 20_000)))
    parsed: list[bytes] = []
    parse = facts._parsed
    monkeypatch.setattr(facts, "_parsed", lambda line: parsed.append(line) or parse(line))
    found = facts.Reading()
    found.read_on(path)
    assert (found.step, found.mono) == (19_999, 19_999)
    assert len(parsed) < 5


def test_a_process_that_is_gone_shows_as_crashed_though_no_file_has_changed(tmp_path: Path) -> None:
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    make(tmp_path, "r", state="running", process=Identity.of(child.pid).as_dict())
    index = Index(tmp_path)
    assert index.row("r").state == "running"
    child.kill()
    child.wait()
    assert index.refresh() == ["r"]
    assert ids(index.search(state="crashed")) == ["r"]


def test_runs_that_other_tests_make_are_read(tmp_path: Path) -> None:
    run = write(tmp_path / "run", "grpo", HEALTHY["grpo"])
    (run / "status.json").write_text(json.dumps(STATUS))
    row = Index(tmp_path).row("run")
    assert (row.objective, row.best_metric) == ("grpo", "eval_reward")
    assert row.best == pytest.approx(0.6)


@pytest.mark.parametrize("file", ["status.json", "config.yaml", "notes.json", "events.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\0\0", b"[1, 2]\n", b"- a: [\n", b'{"step": "x", "mono": []}\n']
)
def test_damaged_files_of_a_run_hide_nothing(root: Path, file: str, content: bytes) -> None:
    (root / "b" / file).write_bytes(content)
    index = Index(root)
    assert sorted(ids(index.search())) == ["a", "b", "c"]


# ---- trainings without a folder yet


def test_a_training_that_waits_or_never_began_has_a_row(root: Path) -> None:
    jobs, index = Jobs(root), Index(root)
    config = "model_name_or_path: tiny\nstage: dpo\ndataset: a.jsonl, b.jsonl\n"
    failing = (sys.executable, "-c", "import sys; sys.exit('nothing here')")
    jobs.add(JobSpec(request_id="waiting-1", kind="train", command=failing, run="next", fresh_run=True, name="Next one",
                     files={"config.yaml": config}, tags=("t",), when="hold"))  # fmt: skip
    assert index.refresh()
    row = index.row("next")
    assert (row.state, row.name, row.objective, row.model, row.data, row.tags) == (
        "queued", "Next one", "dpo", "tiny", ["a.jsonl", "b.jsonl"], ["t"])  # fmt: skip
    jobs.act("waiting-1", "release")
    while jobs.get("waiting-1").state != "failed":
        jobs.tick()
    assert index.row("next").state == "never started"
    jobs.act("waiting-1", "forget")
    assert index.refresh() == ["next"]
    assert index.row("next") is None


def test_killed_between_its_lock_and_its_first_word(tmp_path: Path) -> None:
    run = make(tmp_path, "r")
    (run / "status.json").unlink()
    (run / "run.lock").write_text("{}")
    assert Index(tmp_path).row("r").state == "never started"


# ---- faults of the file


def test_two_indexes_on_one_file_agree(index: Index, root: Path) -> None:
    other = Index(root)
    notes.change(root / "b", tags=["x"])
    assert (other.refresh(), index.refresh()) == (["b"], [])
    assert ids(index.search("tag:x")) == ids(other.search("tag:x")) == ["b"]
    assert index.rebuild() == 3
    assert ids(other.search("tag:x")) == ["b"]


def test_sizes_are_added_up_once_and_again_after_a_change(index: Index, root: Path) -> None:
    (root / "a/model.safetensors").write_bytes(b"x" * 5000)
    (root / "a/far").symlink_to("/usr")
    notes.change(root / "a", tags=["x"])
    index._measured.clear()
    index.refresh()
    there = sum(path.stat().st_size for path in (root / "a").iterdir() if path.is_file())
    assert index.row("a").bytes == there > 5000
    assert index.bytes() == sum(row.bytes for row in index.search()[0])


@pytest.mark.slow
def test_two_thousand_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(event(i, "train", step=i, loss=2.0 - i / 100, mono=i * 1.0) for i in range(1, 51))
    for i in range(2000):
        make(tmp_path, f"run-{i:04}", day=1 + i % 28, events=lines, config={"tuning": {"rank": 2 ** (i % 6)}})
    index = Index(tmp_path)
    newest_first = index.refresh(seconds=0.2)
    assert 0 < len(newest_first) < 2000
    assert index.rebuilding
    assert index.search()[1] == len(newest_first)
    while index.rebuilding:
        index.refresh(seconds=1.0)
    assert index.search()[1] == 2000
    while any(row.bytes is None for row in index.search(count=2000)[0]):
        index.refresh()

    assert index.search("rank:16 smollm2 run", sort="loss")[1] == 333
    # Where nothing has changed nothing is read, whatever the number of runs.
    monkeypatch.setattr(facts, "read_row", None)
    assert index.refresh() == []
    (tmp_path / "run-0007/notes.json").write_text("{}")
    with pytest.raises(TypeError):
        index.refresh()
