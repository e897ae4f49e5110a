"""The folders of examples that go together run from end to end, with a tiny model in place of the one they name."""

import json
from pathlib import Path

import pytest
from helpers import Jobs

from luthier.runs.store import read_events

EXAMPLES = Path(__file__).parents[2] / "examples"
REPLIES, LARGEST = EXAMPLES / "replies", EXAMPLES / "largest"
SMALL = ["dtype=float32", "threads=1", "max_steps=2", "per_device_train_batch_size=4", "max_samples=16", "save_steps=1"]
pytestmark = pytest.mark.slow


def run(jobs: Jobs, folder: Path, file: Path, *more: str) -> Path:
    done = jobs.run("train", file, *SMALL, *more, "--json", cwd=folder)
    assert done.code == 0, done.err
    assert done.last_json["steps"] == 2
    return folder / done.last_json["run"]


def test_the_whole_pipeline_of_rlhf(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    base = [f"model_name_or_path={tiny}", "lora_rank=4"]
    run(jobs, tmp_path, REPLIES / "1_sft.yaml", *base)
    run(jobs, tmp_path, REPLIES / "2_reward_model.yaml", *base)
    made = run(jobs, tmp_path, REPLIES / "3_ppo.yaml", "max_completion_length=6", "eval_steps=1")
    assert [event["step"] for event in read_events(made, "eval")] == [0, 1, 2]
    # The first two steps belong to the critic.
    weights = [made / f"checkpoint-{n}" / "adapter_model.safetensors" for n in (1, 2)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    critics = [made / f"checkpoint-{n}" / "critic/adapter_model.safetensors" for n in (1, 2)]
    assert critics[0].read_bytes() != critics[1].read_bytes()
    assert (made / "adapter_model.safetensors").is_file()
    assert (made / "checkpoint-2/critic/adapter_model.safetensors").is_file()
    assert not (made / "critic").exists()
    groups = [json.loads(line) for line in (made / "samples.jsonl").read_text().splitlines()]
    assert all(set(each["rewards"]) == {"reward_model"} for group in groups for each in group["completions"])
    said = jobs.run(
        "chat", made, "--message", "My toaster smells of paint.", "--json", "max_new_tokens=4", cwd=tmp_path
    )
    assert said.code == 0, said.err
    for name in ("dpo", "orpo", "simpo", "kto"):
        run(jobs, tmp_path, REPLIES / f"{name}.yaml")


def test_the_group_objectives_on_one_task(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    run(jobs, tmp_path, LARGEST / "sft.yaml", f"model_name_or_path={tiny}", "save_strategy=steps")
    for name in ("grpo", "dapo", "dupo", "gspo"):
        more = [f"stage={name}", f"output_dir=runs/{name}", "num_generations=4", "max_resample_rounds=2"]
        made = run(jobs, tmp_path, LARGEST / "grpo.yaml", *more)
        assert {event["rollout/flat_groups"] for event in read_events(made, "train")} == {1.0}


def test_held_out_letters_name_nothing_that_is_trained_on() -> None:
    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (REPLIES / f"{name}.jsonl").read_text().splitlines()]

    def letter(row: dict) -> str:
        return (row.get("prompt") or row["messages"])[0]["content"]

    trained = {word for name in ("sft", "pairs", "prompts") for row in rows(name) for word in letter(row).split()}
    for name in ("pairs_heldout", "prompts_heldout"):
        assert all(set(letter(row).split()) - trained for row in rows(name))
    assert not {letter(r) for r in rows("pairs_heldout")} & {letter(r) for r in rows("pairs")}
    numbers = [{row.get("prompt") or row["instruction"] for row in map(json.loads, (LARGEST / f"{n}.jsonl").open())}
               for n in ("sft", "prompts", "heldout")]  # fmt: skip
    assert not numbers[0] & numbers[1] | numbers[0] & numbers[2] | numbers[1] & numbers[2]
    assert [len(each) for each in numbers] == [192, 640, 128]


def test_the_scripts_write_these_very_files(tmp_path: Path) -> None:
    import subprocess
    import sys

    for script in (REPLIES / "make_replies.py", LARGEST / "make_largest.py"):
        subprocess.run([sys.executable, script, "--out", tmp_path], check=True)
        for file in script.parent.glob("*.jsonl"):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes()
