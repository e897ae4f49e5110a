"""Stopping anywhere and going on gives the losses of a run that was never stopped, bit for bit."""

from pathlib import Path

import pytest
from helpers import losses, stop_after

from luthier.config.load import load_config
from luthier.core.errors import Interrupted, RunError
from luthier.runs.store import read_events, read_status
from luthier.workflows.train import train

SETTINGS = {
    "learning_rate": 1e-3, "lora_rank": 4, "lora_dropout": 0.1, "num_train_epochs": 2, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "save_steps": 1, "cutoff_len": 128, "lr_scheduler_type": "cosine", "warmup_ratio": 0.2,
    "plot_loss": False, "dtype": "float32", "threads": 1,
}  # fmt: skip


def settings(tiny: Path, rows: Path, run: Path, **more):
    base = {**SETTINGS, "model_name_or_path": str(tiny), "dataset": str(rows), "output_dir": str(run), **more}
    return load_config(base).config


@pytest.mark.parametrize("more", [
    {},
    {"finetuning_type": "full"},
    {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    {"packing": True, "val_size": 4, "eval_steps": 2},
    {"streaming": True, "max_steps": 6, "buffer_size": 5},
    {"optim": "adafactor", "lr_scheduler_type": "constant_with_warmup"},
    {"optim": "adamw_8bit"},
    {"optim": "muon"},
    {"gradient_checkpointing": True},
    {"stage": "dpo"},
    {"stage": "dpo", "precompute_reference": False},
    {"stage": "dpo", "finetuning_type": "full", "num_train_epochs": 1.5, "precompute_reference": False},
    {"stage": "dpo", "streaming": True, "max_steps": 6, "buffer_size": 5},
], ids=lambda more: "-".join(more) or "lora")  # fmt: skip
def test_stop_and_resume_is_bit_identical(tiny, rows, pairs, tmp_path, monkeypatch, more) -> None:
    rows = pairs if more.get("stage") == "dpo" else rows
    if "finetuning_type" in more:
        more = {**more, "lora_rank": None, "lora_dropout": None}
    train(settings(tiny, rows, tmp_path / "whole", **more), quiet=True)
    expected = losses(tmp_path / "whole")
    assert len(expected) >= 3
    for stop in (1, 2, len(expected) - 1):
        run = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Interrupted):
                train(settings(tiny, rows, run, **more), quiet=True)
        assert read_status(run)["state"] == "stopped"
        train(settings(tiny, rows, run, resume="must", **more), quiet=True)
        assert losses(run) == expected
        sequence = [event["seq"] for event in read_events(run)]
        assert sequence == sorted(set(sequence))


def test_stopped_twice(tiny, rows, tmp_path, monkeypatch) -> None:
    train(settings(tiny, rows, tmp_path / "whole"), quiet=True)
    run = tmp_path / "run"
    for step in (2, 4):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted):
                train(settings(tiny, rows, run, resume="auto"), quiet=True)
    train(settings(tiny, rows, run, resume="auto"), quiet=True)
    assert losses(run) == losses(tmp_path / "whole")


def test_other_data_are_refused(tiny, rows, tmp_path, monkeypatch) -> None:
    run, copy = tmp_path / "run", tmp_path / "rows.jsonl"
    copy.write_text(rows.read_text())
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(settings(tiny, copy, run), quiet=True)
    copy.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunError, match=r"data are not those.*then 24 rows.*now 23 rows"):
        train(settings(tiny, copy, run, resume="auto"), quiet=True)


def test_other_settings_are_refused(tiny, rows, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(settings(tiny, rows, run), quiet=True)
    with pytest.raises(RunError, match=r"train.learning_rate differs: then 0.001, now 0.01"):
        train(settings(tiny, rows, run, resume="auto", learning_rate=1e-2), quiet=True)


def test_split_of_a_step_does_not_change_the_losses(tiny, rows, tmp_path) -> None:
    """1 x 8, 2 x 4 and 8 x 1 rows a step: the same run up to rounding."""
    runs = {}
    for size, times in ((8, 1), (4, 2), (1, 8)):
        run = tmp_path / f"{size}x{times}"
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": times, "lora_dropout": 0.0}
        train(settings(tiny, rows, run, **more), quiet=True)
        runs[size] = [float.fromhex(x) for x in losses(run).values()]
    assert runs[8] == pytest.approx(runs[4], abs=1e-5)
    assert runs[8] == pytest.approx(runs[1], abs=1e-5)


def test_training_learns(tiny, rows, tmp_path) -> None:
    run = tmp_path / "run"
    result = train(settings(tiny, rows, run, finetuning_type="full", lora_rank=None, lora_dropout=None,
                            num_train_epochs=12, learning_rate=1e-2, save_steps=100), quiet=True)  # fmt: skip
    first = float.fromhex(losses(run)[1])
    assert result.train_loss is not None
    assert result.train_loss < first / 2


def test_finished_run_is_not_written_over(tiny, rows, tmp_path) -> None:
    run = tmp_path / "run"
    train(settings(tiny, rows, run), quiet=True)
    before = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    with pytest.raises(RunError, match="already holds a run"):
        train(settings(tiny, rows, run), quiet=True)
    assert train(settings(tiny, rows, run, resume="auto"), quiet=True).status == "done"
    assert {p.name: p.stat().st_mtime_ns for p in run.iterdir()} == before
    train(settings(tiny, rows, run, overwrite_output_dir=True), quiet=True)
    assert len([p for p in tmp_path.iterdir() if "replaced" in p.name]) == 1


def test_best_checkpoint_and_early_stop(tiny, rows, tmp_path) -> None:
    run = tmp_path / "run"
    more = {"val_size": 6, "eval_steps": 1, "load_best_model_at_end": True, "early_stopping_steps": 2, "num_train_epochs": 30,
            "save_total_limit": 1, "save_steps": 1000, "learning_rate": 0.3, "lora_dropout": 0.0}  # fmt: skip
    result = train(settings(tiny, rows, run, **more), quiet=True)
    evaluations = {e["step"]: e["eval_loss"] for e in read_events(run, "eval")}
    best = min(evaluations, key=evaluations.__getitem__)
    assert result.eval_loss == pytest.approx(evaluations[best])
    assert max(evaluations) == best + 2
    assert (run / "adapter_model.safetensors").read_bytes() == (
        run / f"checkpoint-{best}" / "adapter_model.safetensors"
    ).read_bytes()


def test_run_directory_is_complete_and_opens_with_plain_peft(tiny, rows, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    train(settings(tiny, rows, run, report_to="tensorboard", plot_loss=True), quiet=True)
    names = {p.name for p in run.iterdir()}
    wanted = {"config.yaml", "status.json", "events.jsonl", "log.txt", "training_loss.png", "audit.json",
              "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}  # fmt: skip
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tmp", "trash"))]
    assert any("events.out" in str(p) for p in run.rglob("*"))
    line = read_events(run, "train")[-1]
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "peak_memory_bytes",
            "seconds", "seq", "time"} <= line.keys()  # fmt: skip
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(run))
    assert AutoTokenizer.from_pretrained(run).chat_template
    assert any("lora_B" in n and p.abs().sum() > 0 for n, p in model.named_parameters())


def test_full_run_opens_with_plain_transformers(tiny, rows, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    train(settings(tiny, rows, run, finetuning_type="full", lora_rank=None, lora_dropout=None), quiet=True)
    tuned, base = AutoModelForCausalLM.from_pretrained(run), AutoModelForCausalLM.from_pretrained(tiny)
    assert any((a - b).abs().max() > 0 for a, b in zip(tuned.parameters(), base.parameters(), strict=True))
    again = settings(tiny, rows, tmp_path / "second", model_name_or_path=str(run))
    assert train(again, quiet=True).status == "done"


def test_bfloat16_full_tuning_keeps_float32_weights(tiny, rows, tmp_path, monkeypatch) -> None:
    from safetensors.torch import load_file

    import luthier.models.device as device

    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: True)
    run = tmp_path / "run"
    train(
        settings(tiny, rows, run, finetuning_type="full", lora_rank=None, lora_dropout=None, dtype="bfloat16"),
        quiet=True,
    )
    assert {str(t.dtype) for t in load_file(run / "model.safetensors").values()} == {"torch.float32"}
