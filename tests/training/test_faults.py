"""Kill, fill, damage and confuse a run; nothing is lost, and losses go on as if nothing happened."""

import json
import os
import random
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import Jobs, kill, losses, wait_for

from luthier.runs.manifest import damage
from luthier.runs.store import list_checkpoints, read_events, read_lines, read_status

pytestmark = pytest.mark.slow
STEPS = 8


@pytest.fixture
def file(tiny: Path, rows: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model_name_or_path: {tiny}\ndataset: {rows}\noutput_dir: run\nlora_rank: 4\nlora_dropout: 0.1\n"
        f"learning_rate: 1e-3\nmax_steps: {STEPS}\nper_device_train_batch_size: 4\nsave_steps: 2\ndtype: float32\n"
        "plot_loss: false\nsave_total_limit: 2\nthreads: 1\n"
    )
    return path


@pytest.fixture(scope="module")
def expected(tiny: Path, rows: Path, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The losses of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = [f"dataset={rows}", "output_dir=run", "lora_rank=4", "lora_dropout=0.1", "learning_rate=1e-3",
                f"max_steps={STEPS}", "per_device_train_batch_size=4", "save_steps=2", "dtype=float32", "plot_loss=false",
                "save_total_limit=2", "threads=1"]  # fmt: skip
    (folder / "empty.yaml").write_text(f"model_name_or_path: {tiny}\n")
    result = jobs.run("train", "empty.yaml", *settings, cwd=folder)
    assert result.code == 0, result.err
    return losses(folder / "run")


def assert_whole(run: Path, expected: dict[int, str]) -> None:
    """Nothing half, every step once, the same losses, a good newest checkpoint."""
    assert losses(run) == expected
    assert read_status(run)["state"] == "done"
    assert not list(run.glob("tmp-*"))
    assert not list(run.glob("trash-*"))
    assert damage(list_checkpoints(run)[0]) is None
    assert (run / "adapter_model.safetensors").is_file()


def resume(jobs: Jobs, file: Path) -> None:
    result = jobs.run("train", file, "--resume", "auto", cwd=file.parent)
    assert result.code == 0, result.err
    assert "Traceback" not in result.err


def test_f1_killed_at_random_times(jobs, file, tmp_path, expected) -> None:
    draw = random.Random(7)
    for _ in range(20):  # also kills of runs that were resumed
        process = jobs.start("train", file, "--resume", "auto", cwd=tmp_path)
        process.join(draw.uniform(0.1, 0.6))
        kill(process)
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f2_killed_at_every_point_of_a_save(jobs, file, tmp_path, expected) -> None:
    traced = jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT=":trace")
    assert traced.code == 0, traced.err
    points = dict.fromkeys(
        line.split()[1] for line in traced.out.splitlines() if line.startswith(("fault-point checkpoint", "fault-point prune",
                                                                                "fault-point write"))
    )  # fmt: skip
    assert len(points) >= 10
    for point in points:
        for visit in (1, 2, 3):
            shutil.rmtree(tmp_path / "run")
            broken = jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT=f"{point}:kill:{visit}")
            if broken.code == 0:  # visited fewer times than that
                continue
            assert broken.code == -signal.SIGKILL, (point, broken.err)
            for checkpoint in list_checkpoints(tmp_path / "run"):
                assert damage(checkpoint) is None, f"{point}: half a checkpoint"
            resume(jobs, file)
            assert_whole(tmp_path / "run", expected)


def test_f3_disk_full_while_saving(jobs, file, tmp_path, expected) -> None:
    full = jobs.run(
        "train", file, "--json", cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="checkpoint.written:disk_full:3"
    )
    assert full.code == 1
    assert full.last_json["error"]["code"] == "disk_full"
    assert [damage(p) for p in list_checkpoints(tmp_path / "run")] == [None, None]
    assert read_status(tmp_path / "run")["state"] == "failed"
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f3_too_little_space_is_said_before_writing(tmp_path, monkeypatch) -> None:
    from luthier.core.errors import TrainingError
    from luthier.training.checkpoint import write_checkpoint

    with pytest.raises(TrainingError, match=r"disk full: a checkpoint takes .* MB, .* MB are free"):
        write_checkpoint(tmp_path, 1, lambda folder: None, needed_bytes=10**18)
    assert list(tmp_path.iterdir()) == []


def test_f3_events_cannot_be_written(jobs, file, tmp_path, expected) -> None:
    full = jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="events.append:disk_full:5")
    assert full.code == 1
    assert "Traceback" not in full.err
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f4_file_size_limit(jobs, file, tmp_path) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert jobs.run("train", file, "max_steps=2", cwd=tmp_path).code == 0
    size = (tmp_path / "run" / "checkpoint-2" / "optimizer.safetensors").stat().st_size
    shutil.rmtree(tmp_path / "run")
    process = jobs.start("train", file, "--json", cwd=tmp_path)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size - 100, hard))
    result = jobs.finish(process)
    assert result.code == 1, result.err
    assert "Traceback" not in result.err
    assert not list_checkpoints(tmp_path / "run")


DAMAGES = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-10]),
    "bit flipped": lambda p: p.write_bytes(p.read_bytes()[:-9] + bytes([p.read_bytes()[-9] ^ 1]) + p.read_bytes()[-8:]),
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_f5_damaged_checkpoint_is_found_and_the_one_before_used(jobs, file, tmp_path, expected, how, name) -> None:
    run = tmp_path / "run"
    stopped = jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:kill:5")
    assert stopped.code == -signal.SIGKILL
    DAMAGES[how](run / "checkpoint-4" / name)
    result = jobs.run("train", file, "--resume", "auto", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "checkpoint-4 is damaged" in result.err
    assert "resumed from checkpoint-2" in result.err
    assert_whole(run, expected)


def test_f5_all_damaged_never_starts_anew_in_silence(jobs, file, tmp_path) -> None:
    jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:kill:5")
    for checkpoint in list_checkpoints(tmp_path / "run"):
        (checkpoint / "state.json").unlink()
    result = jobs.run("train", file, "--resume", "auto", cwd=tmp_path)
    assert result.code == 2
    assert "no checkpoint that verifies" in result.err
    assert "overwrite_output_dir" in result.err


@pytest.mark.parametrize(("name", "code"), [("sigterm", 143), ("sigint", 130), ("sighup", 143)])
@pytest.mark.parametrize("where", ["train.step:3", "checkpoint.begin:2", "events.append:4"])
def test_f6_first_signal_saves_and_exits(jobs, file, tmp_path, expected, name, code, where) -> None:
    point, visit = where.split(":")
    result = jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT=f"{point}:{name}:{visit}")
    assert result.code == code, result.err
    assert "--resume auto" in result.err
    assert read_status(tmp_path / "run")["state"] == "stopped"
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f6_second_signal_ends_at_once(jobs, file, tmp_path, expected) -> None:
    process = jobs.start("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="checkpoint.begin:sleep:2")
    wait_for(lambda: (tmp_path / "run" / "checkpoint-2").is_dir() and list((tmp_path / "run").glob("tmp-4-*")))
    os.kill(process.pid, signal.SIGTERM)
    wait_for(lambda: "once more stops at once" in process.files[1].read_text())
    os.kill(process.pid, signal.SIGTERM)
    process.join(2)
    assert process.exitcode == 143
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f6_signal_before_the_first_step_leaves_nothing(jobs, file, tmp_path) -> None:
    process = jobs.start("train", file, cwd=tmp_path)
    wait_for(lambda: process.files[1].exists() and "device:" in process.files[1].read_text(), 30)
    os.kill(process.pid, signal.SIGINT)
    result = jobs.finish(process, 30)
    assert result.code == 130
    if "there was nothing to save" in result.err:
        assert not (tmp_path / "run").exists()


def test_f6_usr1_saves_and_goes_on(jobs, file, tmp_path, expected) -> None:
    job = jobs.run(
        "train", file, "save_steps=1000", cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:sigusr1:3"
    )
    assert job.code == 0, job.err
    assert [event["step"] for event in read_events(tmp_path / "run", "checkpoint")] == [3, STEPS]
    assert losses(tmp_path / "run") == expected


def test_f7_two_processes_on_one_run(jobs, file, tmp_path, expected) -> None:
    first = jobs.start("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:sleep:3")
    wait_for(lambda: len(read_events(tmp_path / "run", "train")) >= 2)
    second = jobs.run("train", file, "--resume", "auto", cwd=tmp_path)
    assert second.code == 2
    assert f"process {first.pid} " in second.err
    kill(first)
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f7_many_starts_one_winner(jobs, file, tmp_path) -> None:
    started = [jobs.start("train", file, cwd=tmp_path) for _ in range(6)]
    codes = sorted(jobs.finish(process).code for process in started)
    assert codes == [0, 2, 2, 2, 2, 2]


def test_f8_reused_pid_is_a_crashed_run(jobs, file, tmp_path) -> None:
    jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:kill:3")
    path = tmp_path / "run" / "status.json"
    status = json.loads(path.read_text())
    status["process"]["pid"] = status["pid"] = os.getpid()  # a living stranger
    path.write_text(json.dumps(status))
    assert read_status(tmp_path / "run")["state"] == "crashed"
    resume(jobs, file)


def test_f9_clock_going_backwards_keeps_the_order(tmp_path, monkeypatch) -> None:
    from datetime import UTC, datetime, timedelta

    import luthier.runs.store as store

    hours = iter([0, -24, 24, -48, 3, 1, 0, 0, 0, 0])

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 3, 29, tzinfo=UTC) + timedelta(hours=next(hours))

    monkeypatch.setattr(store, "datetime", Jumping)
    run = store.RunStore.open(tmp_path, "model: {}\n")
    for step in range(1, 5):
        run.event("train", step=step, loss=1.0)
    run.close()
    events = store.read_events(tmp_path, "train")
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    assert [event["seq"] for event in events] == [1, 2, 3, 4]
    assert all(a["mono"] <= b["mono"] for a, b in pairwise(events))


def test_f13_half_lines_at_every_cut(tmp_path) -> None:
    from luthier.runs.store import RunStore

    whole = (
        b'{"seq": 1, "kind": "train", "step": 1, "loss": 2.0}\n{"seq": 2, "kind": "train", "step": 2, "loss": 1.0}\n'
    )
    for cut in range(len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "events.jsonl").write_bytes(whole[:cut])
        assert all(isinstance(event, dict) for event in read_lines(folder / "events.jsonl"))
        run = RunStore.open(folder, "")
        run.event("train", step=9, loss=0.5)
        run.close()
        events = list(read_lines(folder / "events.jsonl"))
        assert events[-1]["step"] == 9
        assert [e["seq"] for e in events] == sorted({e["seq"] for e in events})
    (tmp_path / "nul.jsonl").write_bytes(whole[:52] + b"\0" * 200 + b"\n" + whole[52:])
    assert len(list(read_lines(tmp_path / "nul.jsonl"))) == 2


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_f14_non_finite_stops_before_the_step(tiny, rows, tmp_path, monkeypatch, where) -> None:
    from luthier.config.load import load_config
    from luthier.core.errors import TrainingError
    from luthier.training import trainer as module
    from luthier.workflows.train import train

    kept: dict[str, torch.Tensor] = {}
    original = module.Trainer.train_step

    def poisoned(self, batches, **options):
        if self.state.step == 2:
            parameter = next(iter(self.parameters.values()))
            if where == "weight":
                parameter.data.view(-1)[0] = float("nan")
            else:
                parameter.register_hook(lambda g: g * float("inf"))
            kept.update({n: p.detach().clone() for n, p in self.parameters.items()})
            kept["trainer"] = self
        return original(self, batches, **options)

    monkeypatch.setattr(module.Trainer, "train_step", poisoned)
    config = load_config({"model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(tmp_path / "run"),
                          "save_steps": 1, "max_steps": 5, "dtype": "float32"}).config  # fmt: skip
    with pytest.raises(TrainingError, match=rf"step 3: .* not finite .*{rows.name}:\d+.*checkpoint-2"):
        train(config, quiet=True)
    trainer = kept.pop("trainer")
    for name, parameter in trainer.parameters.items():
        torch.testing.assert_close(parameter.detach(), kept[name], equal_nan=True, rtol=0, atol=0)
    assert read_status(tmp_path / "run")["error_code"] == "nonfinite"
    assert list_checkpoints(tmp_path / "run")[0].name == "checkpoint-2"


def test_f15_out_of_memory_says_what_would_fit(jobs, file, tmp_path, expected, monkeypatch) -> None:
    result = jobs.run("train", file, "--json", cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:memory:5")
    assert result.code == 1
    assert result.last_json["error"]["code"] == "out_of_memory"
    assert "gradient_accumulation_steps" in result.err
    resume(jobs, file)
    assert_whole(tmp_path / "run", expected)


def test_f19_other_versions_are_said(jobs, file, tmp_path) -> None:
    jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:kill:3")
    result = jobs.run("train", file, "--resume", "auto", "threads=2", cwd=tmp_path)
    assert result.code == 0
    assert "not bit-identically: threads 1 -> 2" in result.err


def test_f27_some_checkpoint_is_good_after_any_power_cut(jobs, file, tmp_path) -> None:
    """Files that were not yet synced lose their end: whatever is cut in the newest folder, an older one verifies."""
    jobs.run("train", file, cwd=tmp_path, LUTHIER_TESTING="1", LUTHIER_FAULT="train.step:kill:5")
    run = tmp_path / "run"
    newest = list_checkpoints(run)[0]
    from luthier.training.checkpoint import newest_good

    for path in sorted(newest.iterdir()):
        raw = path.read_bytes()
        for cut in (0, len(raw) // 2, len(raw) - 1):
            path.write_bytes(raw[:cut] + b"\0" * (len(raw) - cut if cut % 2 else 0))
            good = newest_good(run)
            assert good is not None
            assert damage(good.path) is None
            path.write_bytes(raw)
