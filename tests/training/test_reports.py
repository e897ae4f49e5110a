"""Files that scripts read beside a run: made from events, without a gap or a line twice after a resume."""

import json
from pathlib import Path

import pytest
from helpers import stop_after

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, Interrupted, RunError
from luthier.training.reports import TrainerLog, train_results
from luthier.workflows.stages import carry_out


def event(kind: str, mono: float, **values: object) -> dict:
    return {"seq": int(mono * 10), "kind": kind, "mono": mono, **values}


def write_events(run: Path, events: list[dict]) -> None:
    numbered = [{**each, "seq": i + 1} for i, each in enumerate(events)]
    (run / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in numbered))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_event(step: int, mono: float, loss: float) -> dict:
    return event("train", mono, step=step, epoch=step / 2, loss=loss, learning_rate=0.1, tokens=100 * step, seconds=1.0)


FIRST = [event("begin", 5.0, after=0, total=4), train_event(1, 65.0, 4.0), train_event(2, 125.0, 3.0),
         event("eval", 135.0, step=2, epoch=1.0, eval_loss=2.5), train_event(3, 195.0, 99.0)]  # fmt: skip
"""It was killed behind step 3, with a checkpoint at step 2."""
SECOND = [event("begin", 2.0, after=2, total=4), train_event(3, 62.0, 2.0), train_event(4, 122.0, 1.0)]


def test_log_over_a_resume(tmp_path: Path) -> None:
    write_events(tmp_path, FIRST)
    log = TrainerLog(tmp_path, after=2)
    for each in SECOND:
        log.add(each)
    found = lines(tmp_path / "trainer_log.jsonl")
    assert [line["current_steps"] for line in found] == [1, 2, 2, 3, 4]
    assert [line.get("loss", line.get("eval_loss")) for line in found] == [4.0, 3.0, 2.5, 2.0, 1.0]
    assert found[0] == {
        "current_steps": 1, "total_steps": 4, "loss": 4.0, "lr": 0.1, "epoch": 0.5, "percentage": 25.0,
        "elapsed_time": "0:01:00", "remaining_time": "0:03:00", "throughput": 1.67, "total_tokens": 100,
    }  # fmt: skip
    assert [line["elapsed_time"] for line in found] == ["0:01:00", "0:02:00", "0:02:10", "0:03:10", "0:04:10"]
    write_events(tmp_path, [*FIRST, *SECOND])
    TrainerLog(tmp_path, after=4)
    assert lines(tmp_path / "trainer_log.jsonl") == found


def test_loss_is_the_mean_of_all_steps(tmp_path: Path) -> None:
    write_events(
        tmp_path, [event("begin", 0.0, after=0, total=5), train_event(2, 10.0, 4.0), train_event(5, 20.0, 1.0)]
    )
    found = train_results(tmp_path, rows_per_step=8)
    assert found["train_loss"] == pytest.approx((2 * 4.0 + 3 * 1.0) / 5)
    assert (found["train_runtime"], found["train_samples_per_second"], found["epoch"]) == (20.0, 2.0, 2.5)


def test_best_checkpoint_is_one_of_the_loop(tmp_path: Path) -> None:
    from luthier.config.training import TrainConfig
    from luthier.training.reports import trainer_state

    worse = event("eval", 130.0, step=4, epoch=2.0, eval_loss=1.0, at_end=True)
    write_events(tmp_path, [*FIRST[:4], worse])
    state = trainer_state(tmp_path, TrainConfig(), step=4, total=4)
    assert (state["best_global_step"], state["best_metric"]) == (2, 2.5)
    assert state["log_history"][-1] == {"step": 4, "epoch": 2.0, "eval_loss": 1.0}
    assert trainer_state(tmp_path, TrainConfig(), step=1, total=4)["best_global_step"] is None


@pytest.fixture
def settings(tiny: Path, rows: Path, tmp_path: Path) -> dict:
    return {"model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(tmp_path / "run"), "max_steps": 4,
            "per_device_train_batch_size": 4, "lora_rank": 4, "dtype": "float32", "threads": 1, "val_size": 4,
            "eval_steps": 2, "save_steps": 2, "max_new_tokens": 3}  # fmt: skip


def start(settings: dict, **more: object) -> Path:
    return carry_out(load_config({**settings, **more}).config, quiet=True).run


@pytest.mark.slow
def test_a_run_that_was_stopped(settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerState

    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            start(settings)
    run = start(settings, resume="auto", do_train=True, do_predict=True)
    log = lines(run / "trainer_log.jsonl")
    assert [(line["current_steps"], "eval_loss" in line) for line in log] == [
        (1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]  # fmt: skip
    state = TrainerState.load_from_json(str(run / "trainer_state.json"))
    assert (state.global_step, state.max_steps) == (4, 4)
    assert [entry["step"] for entry in state.log_history] == [1, 2, 2, 3, 4, 4]
    assert state.log_history[0]["loss"] == log[0]["loss"]
    assert TrainerState.load_from_json(str(run / "checkpoint-2/trainer_state.json")).global_step == 2
    every = json.loads((run / "all_results.json").read_text())
    parts = [json.loads((run / f"{name}_results.json").read_text()) for name in ("train", "eval", "predict")]
    assert every == parts[0] | parts[1] | parts[2]
    assert {"train_loss", "train_runtime", "eval_loss", "predict_bleu-4", "predict_rouge-l", "predict_runtime"} <= set(
        every
    )
    assert every["train_loss"] == pytest.approx(sum(line["loss"] for line in log if "loss" in line) / 4)
    assert every["predict_loss"] == pytest.approx(every["eval_loss"], rel=1e-4)
    assert set(lines(run / "generated_predictions.jsonl")[0]) == {"prompt", "predict", "label"}
    assert [(run / f"training_{name}.png").is_file() for name in ("loss", "eval_loss")] == [True, True]
    again = load_config(run / "training_args.yaml").config
    assert again.tuning.rank == 4
    assert again.evaluate.do_predict is True


@pytest.mark.slow
def test_predicting_alone(settings: dict, rows: Path, tmp_path: Path) -> None:
    only = {k: v for k, v in settings.items() if k not in ("dataset", "val_size")}
    only |= {"do_predict": True, "do_eval": True, "eval_dataset": str(rows), "max_samples": 3}
    run = start(only)
    assert sorted(file.name for file in run.iterdir()) == [
        "all_results.json", "eval_results.json", "generated_predictions.jsonl", "predict_results.json"]  # fmt: skip
    line = lines(run / "generated_predictions.jsonl")[1]
    row = json.loads(rows.read_text(encoding="utf-8").splitlines()[1])
    assert (line["label"], row["instruction"] in line["prompt"]) == (row["output"], True)
    assert line["prompt"].endswith("<|im_start|>assistant\n")
    with pytest.raises(RunError, match="overwrite_output_dir"):
        start(only)
    start(only, overwrite_output_dir=True, predict_with_generate=False)
    assert "predict_bleu-4" not in json.loads((run / "predict_results.json").read_text())


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"do_train": False}, "nothing to do"),
        ({"do_predict": True, "val_size": 0}, "do_predict needs rows"),
        ({"do_eval": True, "val_size": 0}, "do_eval needs rows"),
    ],
)
def test_contradictions(settings: dict, more: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        start(settings, **more)
