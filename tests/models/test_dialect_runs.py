"""Runs whose rows are kept, whose evaluation data sets are told apart, and which go on with added words."""

import json
from pathlib import Path

import pytest
from helpers import byte_tokenizer, losses, stop_after

from luthier.config.load import load_config
from luthier.core.errors import Interrupted
from luthier.runs.store import read_events
from luthier.workflows.build import load_speaker
from luthier.workflows.train import train

SETTINGS = {"max_steps": 2, "threads": 1, "per_device_train_batch_size": 2, "plot_loss": False, "dtype": "float32",
            "learning_rate": 1e-2, "lora_rank": 2, "save_steps": 1}  # fmt: skip


def run_of(folder: Path, **settings) -> Path:
    config = load_config({**SETTINGS, **settings}).config
    return train(config, quiet=True).run


@pytest.fixture
def sets(tmp_path) -> str:
    names = {"a": "good", "b": "x" * 40}
    for name, answer in names.items():
        rows = [{"instruction": f"{name}{i}", "output": answer} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"


@pytest.mark.slow
def test_each_evaluation_data_set_has_its_loss(tiny, rows, sets, tmp_path) -> None:
    common = {"model_name_or_path": str(tiny), "dataset": str(rows), "eval_strategy": "steps", "eval_steps": 2}
    run = run_of(tmp_path, **common, eval_dataset=sets, eval_on_each_dataset=True, output_dir=str(tmp_path / "run"))
    (event, *_) = read_events(run, "eval")
    for name in ("a", "b"):
        alone = run_of(
            tmp_path, **common, eval_dataset=str(tmp_path / f"{name}.jsonl"), output_dir=str(tmp_path / name)
        )
        (other, *_) = read_events(alone, "eval")
        assert event[f"eval_{name}_loss"] == pytest.approx(other["eval_loss"], rel=1e-6)
    tokens = {"a": 3 * len("good") + 3, "b": 3 * 40 + 3}
    mean = sum(event[f"eval_{name}_loss"] * count for name, count in tokens.items()) / sum(tokens.values())
    assert event["eval_loss"] == pytest.approx(mean, rel=1e-5)


def test_kept_rows_train_the_same(tiny, sets, tmp_path) -> None:
    common = {"model_name_or_path": str(tiny), "tokenized_path": str(tmp_path / "kept")}
    first = run_of(tmp_path, **common, dataset=sets, output_dir=str(tmp_path / "first"))
    for file in sets.split(","):
        Path(file).unlink()
    again = run_of(tmp_path, **common, output_dir=str(tmp_path / "again"))
    assert losses(again) == losses(first)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_with_added_words_goes_on_and_answers(tiny, tmp_path, monkeypatch, method) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"instruction": f"<q>{i}", "output": "冰淇淋"}) for i in range(6)))
    common = {"model_name_or_path": str(tiny), "dataset": str(data), "finetuning_type": method,
              "add_special_tokens": "<q>", "add_tokens": "冰淇淋"}  # fmt: skip
    whole = run_of(tmp_path, **common, max_steps=4, output_dir=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            run_of(tmp_path, **common, max_steps=4, output_dir=str(tmp_path / "parts"))
    parts = run_of(tmp_path, **common, max_steps=4, output_dir=str(tmp_path / "parts"), resume_from_checkpoint=True)
    assert {k: v for k, v in losses(parts).items() if k > 2} == {k: v for k, v in losses(whole).items() if k > 2}
    speaker = load_speaker(load_config({"model_name_or_path": str(parts), "threads": 1, "max_new_tokens": 3}).config)
    word = len(byte_tokenizer())
    assert speaker.template.tokenizer("冰淇淋<q>").input_ids == [word, word + 1]
    ((answer,),) = speaker.engine.generate([[word + 1, word]], speaker.how)
    assert answer.tokens
