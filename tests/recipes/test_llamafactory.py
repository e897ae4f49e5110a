"""Files in LLaMA-Factory's form run from end to end, with a tiny model in place of the one that they name."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from helpers import Jobs

FOLDER = Path(__file__).parent / "llamafactory"
DOCS = Path(__file__).parents[2] / "docs"
SMALL = ("max_steps=2", "threads=1", "dtype=float32")
OTHERWISE = ["lora_sft", "lora_predict", "lora_merge", "lora_inference", "lora_eval", "dpo_on_adapter", "lora_reward",
             "lora_ppo", "lora_sft_then_predict", "full_sft", "full_predict"]  # fmt: skip
TRAINED_ALONE = sorted({file.stem for file in FOLDER.glob("*.yaml")} - {*OTHERWISE})


def run(jobs: Jobs, name: str, tiny: Path, cwd: Path, *more: str, command: str = "train") -> str:
    done = jobs.run(command, FOLDER / f"{name}.yaml", f"model_name_or_path={tiny}", *more, cwd=cwd)
    assert done.code == 0, done.err
    return done.out


def results(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}_results.json").read_text())


@pytest.mark.slow
def test_from_training_to_answers(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    run(jobs, "lora_sft", tiny, tmp_path, *SMALL)
    made = tmp_path / "saves/lora/sft"
    assert results(made, "train")["train_loss"] > 0
    assert results(made, "eval")["eval_loss"] > 0
    opens_in_peft(tiny, made)
    run(jobs, "lora_predict", tiny, tmp_path)
    answers = (tmp_path / "saves/lora/predict/generated_predictions.jsonl").read_text().splitlines()
    assert len(answers) == 8
    assert {"predict_rouge-1", "predict_bleu-4"} <= set(results(tmp_path / "saves/lora/predict", "predict"))
    run(jobs, "lora_merge", tiny, tmp_path, command="export")
    assert (tmp_path / "output/lora_sft/model.safetensors").is_file()
    said = run(jobs, "lora_inference", tiny, tmp_path, "--message", "Who are you?", "--json", command="chat")
    assert json.loads(said.splitlines()[-1])["answers"]
    write_benchmark(tmp_path / "evaluation/small")
    graded = run(jobs, "lora_eval", tiny, tmp_path, "template=default", "--json", command="eval")
    assert "choice/small" in graded
    run(jobs, "dpo_on_adapter", tiny, tmp_path, *SMALL, f"ref_model={tiny}")


@pytest.mark.slow
def test_rewards_and_what_learns_from_them(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    run(jobs, "lora_reward", tiny, tmp_path, *SMALL)
    assert (tmp_path / "saves/lora/reward/training_loss.png").is_file()
    run(jobs, "lora_ppo", tiny, tmp_path, *SMALL, "max_new_tokens=6", f"reward_model={tiny}")
    assert "reward" in (tmp_path / "saves/lora/ppo/trainer_log.jsonl").read_text()


@pytest.mark.slow
def test_whole_models(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    from transformers import AutoModelForCausalLM

    run(jobs, "full_sft", tiny, tmp_path, *SMALL)
    AutoModelForCausalLM.from_pretrained(tmp_path / "saves/full/sft")
    run(jobs, "full_predict", tmp_path / "saves/full/sft", tmp_path)
    assert "predict_loss" in results(tmp_path / "saves/full/predict", "all")


@pytest.mark.slow
def test_training_then_predicting(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    run(jobs, "lora_sft_then_predict", tiny, tmp_path, *SMALL)
    assert {"train_loss", "eval_loss", "predict_rouge-l"} <= set(results(tmp_path / "saves/lora/both", "all"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED_ALONE)
def test_training(name: str, tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    # The tiny model's layers are too narrow for the 4-bit layers of bitsandbytes.
    more = ["quantization_backend=luthier"] if name.startswith("qlora") else []
    run(jobs, name, tiny, tmp_path, *SMALL, *more)
    made = tmp_path / yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["output_dir"]
    assert results(made, "train")["train_loss"] > 0
    assert len((made / "trainer_log.jsonl").read_text().splitlines()) >= 2


def test_together_they_use_every_key_that_is_honoured() -> None:
    sys.path.insert(0, str(DOCS))
    from make_dialect import KEYS, becomes

    used = {key for file in FOLDER.glob("*.yaml") for key in yaml.safe_load(file.read_text())}
    honoured = [key for keys in yaml.safe_load(KEYS.read_text()).values() for key in keys
                if becomes(key)[0] in ("honoured", "in part")]  # fmt: skip
    assert [key for key in honoured if key not in used] == []


def opens_in_peft(tiny: Path, folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for each in (folder, folder / "checkpoint-2"):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(each))
        assert model.peft_config["default"].r == 8


def write_benchmark(folder: Path) -> None:
    for split in ("dev", "val", "test"):
        (folder / split).mkdir(parents=True)
        rows = "".join(f"How many are {n} and 1?,{n + 1},{n + 2},{n + 3},{n + 4},A\n" for n in range(3))
        (folder / split / f"sums_{split}.csv").write_text(rows)


@pytest.mark.slow
def test_a_reference_that_is_nowhere(tiny: Path, tmp_path: Path, jobs: Jobs) -> None:
    done = jobs.run(
        "train", FOLDER / "lora_dpo.yaml", f"model_name_or_path={tiny}", "ref_model=Qwen/none", *SMALL, cwd=tmp_path
    )
    assert done.code == 2
    assert "ref_model: Qwen/none cannot be read" in done.err
