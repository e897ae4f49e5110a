"""Rollouts, end to end: what is answered, graded, learned from, kept and resumed."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers import Jobs, losses, stop_after

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, DataError, Interrupted, RunError, TrainingError
from luthier.runs.store import read_events
from luthier.training.trainer import Trainer
from luthier.workflows.train import train

GRADER = '''
def early_letters(text, example):
    """The share of letters from the first half of the alphabet."""
    return sum("a" <= c <= "m" for c in text) / max(1, len(text))

def always_one(text, example):
    return 1.0

def raises(text, example):
    raise ValueError("no grade today")
'''


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "grader.py").write_text(GRADER)
    lines = [{"prompt": f"say {word} {i}", "answer": word} for i, word in enumerate(["tea", "你好", "🙂", "x"] * 3)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return folder / "prompts.jsonl"


def settings(tiny: Path, prompts: Path, run: Path, **more):
    base = {"model_name_or_path": str(tiny), "dataset": str(prompts), "output_dir": str(run), "stage": "grpo",
            "lora_rank": 4, "learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": 8, "dtype": "float32",
            "plot_loss": False, "cutoff_len": 128, "lr_scheduler_type": "constant", "threads": 1, "num_generations": 4,
            "max_completion_length": 6, "rewards": [f"{prompts.parent}/grader.py:early_letters"],
            "rollout_minibatches": 1, "rollout_epochs": 1}  # fmt: skip
    return load_config({**base, **more}).config


def samples(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def events(run: Path, name: str) -> list[float]:
    return [event[name] for event in read_events(run, "train")]


def test_every_group_is_kept_with_its_rewards(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    train(settings(tiny, prompts, tmp_path / "run"), quiet=True)
    groups = samples(tmp_path / "run")
    assert [g["step"] for g in groups] == [1, 1, 2, 2, 3, 3]
    assert groups[0]["prompt"].startswith("user: say ")
    assert groups[0]["answer"] in ("tea", "你好", "🙂", "x")
    for group in groups:
        rewards = [c["reward"] for c in group["completions"]]
        mean, std = torch.tensor(rewards).mean(), torch.tensor(rewards).std()
        for each in group["completions"]:
            (name,) = each["rewards"]
            assert "early_letters" in name
            assert each["reward"] == each["rewards"][name]
            assert each["advantage"] == pytest.approx(float((each["reward"] - mean) / (std + 1e-4)), abs=1e-4)
            assert each["learned"]
            assert each["version"] == group["step"] - 1
            assert 1 <= each["tokens"] <= 6
    first = [c["reward"] for g in groups[:2] for c in g["completions"]]
    assert events(tmp_path / "run", "reward")[0] == pytest.approx(sum(first) / 8)
    for name in (
        "reward_std",
        "reward/failed",
        "rollout/tokens",
        "rollout/cut_off",
        "rollout/flat_groups",
        "policy/entropy",
    ):
        assert all(math.isfinite(x) for x in events(tmp_path / "run", name))
    assert events(tmp_path / "run", "rollout/staleness") == [0, 0, 0]


@pytest.mark.parametrize("more", [
    {},
    {"stage": "dupo", "kernels": "off"},
    {"stage": "ppo", "num_generations": 1, "rollout_minibatches": 2, "rollout_epochs": 2, "score_scaling": True},
    {"stage": "ppo", "value_model": "shared", "num_generations": 2},
    {"stage": "gspo", "rollout_minibatches": 2, "importance_cap": 2.0},
    {"stage": "reinforce++"},
], ids=lambda more: "-".join(map(str, more.values())) or "grpo")  # fmt: skip
def test_stop_and_resume_is_bit_identical(tiny: Path, prompts: Path, tmp_path: Path, monkeypatch, more) -> None:
    train(settings(tiny, prompts, tmp_path / "whole", **more), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    train(settings(tiny, prompts, tmp_path / "run", resume="must", **more), quiet=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert events(tmp_path / "run", "reward") == events(tmp_path / "whole", "reward")
    assert samples(tmp_path / "run") == samples(tmp_path / "whole")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("engine", ["local", "hf"])
def test_trainer_and_engine_agree_about_what_was_drawn(
    tiny: Path, prompts: Path, tmp_path: Path, temperature: float, engine: str
) -> None:
    """Under a temperature, too: the gap is rounding, and the first ratio is 1."""
    more = {"rollout_temperature": temperature, "rollout_epochs": 2, "engine": engine, "max_steps": 2}
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert max(events(tmp_path / "run", "rollout/logp_gap_max")) < 1e-3
    assert events(tmp_path / "run", "policy/ratio_max")[0] > 1 + 1e-4


def test_one_update_compares_with_the_engine_while_learning(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    train(settings(tiny, prompts, tmp_path / "run"), quiet=True)
    assert max(events(tmp_path / "run", "rollout/logp_gap_max")) < 1e-3
    assert events(tmp_path / "run", "policy/ratio") == pytest.approx([1.0, 1.0, 1.0])


def test_answers_that_were_cut_off_are_masked_or_graded_lower(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    train(settings(tiny, prompts, tmp_path / "mask", cut_off="mask", max_completion_length=8), quiet=True)
    for group in samples(tmp_path / "mask"):
        for each in group["completions"]:
            assert each["learned"] == (each["finish_reason"] == "stop")
    train(settings(tiny, prompts, tmp_path / "lower", cut_off="penalize", cut_off_penalty=2.0, max_steps=1), quiet=True)
    for group in samples(tmp_path / "lower"):
        for each in group["completions"]:
            (own,) = each["rewards"].values()
            assert each["reward"] == pytest.approx(own - 2.0 * (each["finish_reason"] == "length"))


def test_answers_of_the_step_before_are_counted_as_stale(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    train(settings(tiny, prompts, tmp_path / "run", rollout_ahead=1), quiet=True)
    assert events(tmp_path / "run", "rollout/staleness") == [0, 1, 1]
    assert [g["completions"][0]["version"] for g in samples(tmp_path / "run")] == [0, 0, 0, 0, 1, 1]
    with pytest.raises(ConfigError, match="rollout_ahead: 1 needs an engine with weights of its own"):
        train(settings(tiny, prompts, tmp_path / "hf", rollout_ahead=1, engine="hf"), quiet=True)
    assert not (tmp_path / "hf").exists()


def test_rewards_that_never_differ_stop_the_run_and_keep_a_checkpoint(
    tiny, prompts: Path, tmp_path: Path, caplog
) -> None:
    more = {"rewards": [f"{prompts.parent}/grader.py:always_one"], "max_flat_steps": 4, "max_steps": 9, "save_steps": 1}
    with pytest.raises(TrainingError, match=r"in the last 4 steps .* \(last: 1\)") as stopped:
        train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert stopped.value.code == "rollout_flat"
    assert "the run stops after 4 such steps" in caplog.text
    assert (tmp_path / "run/checkpoint-3/manifest.json").is_file()
    assert json.loads((tmp_path / "run/status.json").read_text())["error_code"] == "rollout_flat"
    train(settings(tiny, prompts, tmp_path / "run", **{**more, "max_flat_steps": 10, "resume": "must"}), quiet=True)
    assert events(tmp_path / "run", "reward") == [1] * 9


def test_sampling_again_has_a_guard(tiny: Path, prompts: Path, tmp_path: Path, caplog) -> None:
    more = {
        "stage": "dapo",
        "rewards": [f"{prompts.parent}/grader.py:always_one"],
        "max_resample_rounds": 2,
        "max_steps": 1,
    }
    train(settings(tiny, prompts, tmp_path / "on", **more), quiet=True)
    assert "only 0 of 2 groups differ in reward after 2 rounds" in caplog.text
    assert events(tmp_path / "on", "rollout/rounds") == [2]
    assert events(tmp_path / "on", "rollout/dropped_prompts") == [4]
    with pytest.raises(TrainingError, match="only 0 of 2 groups differ"):
        train(settings(tiny, prompts, tmp_path / "stop", too_few_groups="stop", **more), quiet=True)


def test_when_every_reward_fails_the_run_stops_with_the_first_error(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    more = {"rewards": [f"{prompts.parent}/grader.py:raises"]}
    with pytest.raises(TrainingError, match="no grade today"):
        train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)


def test_held_out_prompts_are_answered_greedily(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    result = train(settings(tiny, prompts, tmp_path / "run", val_size=4, eval_steps=3, eval_on_start=True), quiet=True)
    found = read_events(tmp_path / "run", "eval")
    assert [event["step"] for event in found] == [0, 3]
    assert {"eval_reward", "eval_tokens", "eval_cut_off"} <= set(found[0])
    assert result.eval_loss is None
    assert json.loads((tmp_path / "run/status.json").read_text())["eval_reward"] == found[1]["eval_reward"]


@pytest.mark.parametrize(("more", "sentence"), [
    ({"num_generations": 1}, "num_generations: 1 is too small for grpo, which compares the answers to one prompt"),
    ({"num_generations": 3}, "num_generations: 3 does not divide the 8 answers of a step"),
    ({"max_completion_length": 128}, "max_completion_length 128 leaves no room for a prompt: cutoff_len is 128"),
    ({"rewards": []}, "nothing grades the answers: set rewards"),
    ({"streaming": True}, "streaming: true is for rows"),
    ({"memory_budget": "4GB"}, "memory_budget plans from the lengths of rows"),
    ({"importance_cap": 2.0, "old_logp": "engine"}, "importance_cap weighs the trainer's"),
    ({"stage": "sft", "reward_model": "x"}, "reward_model grades answers while training"),
])  # fmt: skip
def test_settings_that_cannot_be_met(tiny: Path, prompts: Path, tmp_path: Path, more, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert not (tmp_path / "run").exists()


def test_prompts_without_room_for_an_answer_are_named(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts.jsonl:1.*beside an answer only 20 have room"):
        train(settings(tiny, prompts, tmp_path / "run", cutoff_len=26), quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_epoch_ends_inside_a_step(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """12 prompts, 5 a step: the first pass ends in the third step, and that is when it is saved."""
    more = {"per_device_train_batch_size": 10, "num_generations": 2, "max_steps": 4, "save_strategy": "epoch"}
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}


def test_rewards_of_held_out_answers_are_not_normalized(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """There is one answer to a prompt, so inside its group it would always be 0."""
    rewards = [f"{prompts.parent}/grader.py:always_one"]
    more = {"val_size": 4, "eval_steps": 1, "max_steps": 1, "combine_rewards": "normalize", "rewards": rewards}
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert [event["eval_reward"] for event in read_events(tmp_path / "run", "eval")] == [1.0]


def test_the_learning_rate_goes_on_through_steps_without_an_update(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    rewards = [f"{prompts.parent}/grader.py:always_one"]
    more = {"stage": "dupo", "rewards": rewards, "max_steps": 4, "lr_scheduler_type": "linear"}
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert events(tmp_path / "run", "learning_rate") == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_the_divergence_is_the_trainers_whatever_the_ratio_is_formed_with(tiny, prompts: Path, tmp_path: Path) -> None:
    """Before anything is learned, the policy is the reference, and rounding in the engine is no divergence."""
    more = {
        "stage": "ppo",
        "old_logp": "engine",
        "decode_dtype": "bfloat16",
        "max_steps": 1,
        "max_completion_length": 20,
    }
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert events(tmp_path / "run", "rollout/logp_gap")[0] > 1e-5
    assert events(tmp_path / "run", "rollout/kl")[0] == pytest.approx(0, abs=1e-5)
    assert events(tmp_path / "run", "policy/ratio_max")[0] != 1


@pytest.mark.parametrize(("more", "sentence"), [
    ({"rewards": ["exact_mach"]}, "unknown reward 'exact_mach'; did you mean 'exact_match'"),
    ({"rewards": [{"name": "exact_match", "colum": "x"}]}, "unknown setting 'colum'.*did you mean 'column'"),
    ({"environment": "calculater"}, "unknown environment 'calculater'; did you mean 'calculator'"),
])  # fmt: skip
def test_what_grades_is_checked_before_a_model_is_loaded(prompts: Path, tmp_path: Path, more, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(settings(tmp_path / "no model", prompts, tmp_path / "run", **more), quiet=True)


def test_an_environment_that_is_never_asked_is_said(tiny: Path, prompts: Path, tmp_path: Path, caplog) -> None:
    more = {"dataset": "", "rewards": [], "environment": {"name": "calculator", "size": 4}, "cutoff_len": 480}
    with caplog.at_level("INFO", "luthier"):
        train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert "with max_turns: 1 it is not asked about answers" in caplog.text


def test_prompts_that_are_held_out_and_trained_on_are_said(tiny: Path, prompts: Path, tmp_path: Path, caplog) -> None:
    train(settings(tiny, prompts, tmp_path / "run", eval_dataset=str(prompts), max_steps=1), quiet=True)
    assert "evaluation overlaps training: 12 equal prompts" in caplog.text


def test_other_expected_answers_are_other_data(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text(prompts.read_text())
    more = {"rewards": [f"{prompts.parent}/grader.py:early_letters"], "save_steps": 1}
    train(settings(tiny, rows, run, max_steps=1, **more), quiet=True)
    rows.write_text(prompts.read_text().replace('"answer": "tea"', '"answer": "coffee"'))
    with pytest.raises(RunError, match="the data are not those that the run began with"):
        train(settings(tiny, rows, run, max_steps=2, resume="must", **more), quiet=True)


def test_the_commands_around_training_take_prompts(tiny: Path, prompts: Path, tmp_path: Path, jobs: Jobs) -> None:
    flat = {"model_name_or_path": tiny, "stage": "grpo", "dataset": prompts, "max_completion_length": 6}
    (tmp_path / "f.yaml").write_text("".join(f"{key}: {value}\n" for key, value in flat.items()) + "rewards: length\n")
    audited = jobs.run("data", "audit", "f.yaml", cwd=tmp_path)
    assert (audited.code, "12 of 12 rows" in audited.out) == (0, True), audited.err
    short = jobs.run("data", "audit", "f.yaml", "cutoff_len=28", cwd=tmp_path)
    assert (short.code, "beside an answer only 22 have room" in short.out) == (2, True)
    shown = jobs.run("data", "preview", "f.yaml", "--rows", "1", cwd=tmp_path)
    assert "0 learned" in shown.out
    estimated = jobs.run("estimate", "f.yaml", cwd=tmp_path)
    assert (estimated.code, "answers are not known beforehand" in estimated.err) == (2, True)
    valid = jobs.run("validate", "f.yaml", cwd=tmp_path)
    assert (valid.code, "length: exactly one of" in valid.err or "target_tokens" in valid.err) == (2, True), valid.err


@pytest.mark.parametrize("more", [
    {"value_model": "separate"},
    {"value_model": "shared"},
    {"objective.kl_in": "loss", "objective.kl_coef": 0.5, "objective.entropy_coef": 0.5},
], ids=["separate", "shared", "other terms of the loss"])  # fmt: skip
def test_the_policy_stays_while_its_critic_warms_up(tiny: Path, prompts: Path, tmp_path: Path, more) -> None:
    more = {"stage": "ppo", "critic_warmup_steps": 2, "save_steps": 1, "critic_learning_rate": 1e-2, **more}
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    checkpoints = [tmp_path / f"run/checkpoint-{n}" for n in (1, 2, 3)]
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in checkpoints]
    assert weights[0] == weights[1]
    assert weights[1] != weights[2]
    file = "value_head.safetensors" if more.get("value_model") == "shared" else "critic/adapter_model.safetensors"
    critics = [(folder / file).read_bytes() for folder in checkpoints]
    assert critics[0] != critics[1]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_reference_is_read_at_the_temperature_of_the_answers(
    tiny: Path, prompts: Path, tmp_path: Path, tuning
) -> None:
    """Before anything is learned the policy is its reference: a copy of the model, or the model without adapter."""
    more = {"finetuning_type": tuning, "rollout_temperature": 0.5, "learning_rate": 1e-3}
    train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    divergence = events(tmp_path / "run", "policy/kl")
    assert divergence[0] == pytest.approx(0, abs=1e-7)
    assert divergence[-1] > 1e-7


def test_answers_of_a_step_that_was_not_finished_are_kept_once(
    tiny, prompts: Path, tmp_path: Path, monkeypatch
) -> None:
    """A step that dies after its answers were written is answered again, to the same effect."""
    more = {"save_steps": 1, "rollout_minibatches": 1}
    train(settings(tiny, prompts, tmp_path / "whole", **more), quiet=True)
    learn = Trainer.train_step

    def dying(self, batches, **options):
        if self.state.step == 2:
            raise RuntimeError("power cut")
        return learn(self, batches, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            train(settings(tiny, prompts, tmp_path / "run", **more), quiet=True)
    assert [group["step"] for group in samples(tmp_path / "run")] == [1, 1, 2, 2, 3, 3]
    train(settings(tiny, prompts, tmp_path / "run", resume="must", **more), quiet=True)
    assert samples(tmp_path / "run") == samples(tmp_path / "whole")
