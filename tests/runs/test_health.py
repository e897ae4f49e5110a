"""Every rule speaks where it should and is silent about a healthy run, and about one that has hardly begun."""

import re
from pathlib import Path

import pytest
from curves import HEALTHY, Curve, flat, line, noisy, write

from luthier.runs.health import RULES, diagnose, examine, table
from luthier.runs.series import View

DOCS = Path(__file__).parents[2] / "docs/runs.md"


@pytest.mark.parametrize("objective", HEALTHY)
def test_a_healthy_run_is_silent(tmp_path: Path, objective: str) -> None:
    view = View.of(write(tmp_path, objective, HEALTHY[objective]))
    assert [str(finding) for finding in diagnose(view)] == []
    assert set(view.series) == set(HEALTHY[objective])
    assert view.objective == objective


SICK: list[tuple[str, dict[str, Curve], str]] = [
    ("sft", {"learning_rate": flat(0)}, "learning_rate was 0 in 100 of 100 lines: nothing is learned while it is 0; check lr_scheduler_type, warmup_steps and max_steps"),
    ("sft", {"loss": noisy(flat(2.0), 0.1)}, "loss went from 2.049 to 2.038 in 100 steps: the model does not learn these rows; "),
    ("sft", {"eval_loss": lambda s: 1.0 + abs(s - 40) / 100}, "eval_loss was lowest at step 40 (1) and is 1.6 now: the model learns its training rows by heart; fewer epochs, more rows, or load_best_model_at_end: true"),
    ("sft", {"grad_norm": lambda s: 84 if s in (60, 71) else 4}, "grad_norm was over 10 times its median 2 times, most at step 60 (84, median 4): "),
    ("sft", {"grad_norm": lambda s: 84 if s == 60 else 4}, "grad_norm was over 10 times its median once, most at step 60"),
    ("dpo", {"rewards/accuracies": noisy(flat(0.5), 0.05)}, "rewards/accuracies is 0.52 after 100 steps: the pairs are not told apart; "),
    ("dpo", {"rewards/accuracies": line(0.5, 1.0, 8)}, "rewards/accuracies is 1.0 after 10 steps: the pairs are trivially separable, by length or form; take pairs that differ in what matters"),
    ("rm", {"accuracy": flat(0.5)}, "accuracy is 0.50 after 100 steps: "),
    ("rm", {"accuracy": flat(1.0)}, "accuracy is 1.0 after 5 steps: "),
    ("dpo", {"logps/chosen": line(-120, -200)}, "logps/chosen fell from -124 to -196 nats: good answers become improbable together with the bad ones; "),
    ("grpo", {"reward": noisy(flat(0.4), 0.03), "eval_reward": flat(0.4)}, "reward went from 0.415 to 0.412 in 100 steps: "),
    ("grpo", {"reward/failed": flat(0.3)}, "reward/failed is 0.3 (healthy: at most 0.1): answers without a reward are not learned from; "),
    ("grpo", {"eval_reward": line(0.3, 0.28)}, "eval_reward went from 0.297 to 0.281 while reward rose from 0.241 to 0.69: the reward is being gamed, or the training prompts are learned by heart; "),
    ("grpo", {"policy/entropy": line(1.3, 0.1, 40), "reward_std": flat(0.6)}, "policy/entropy fell from 1.24 to 0.223 within 50 steps: the policy gives one answer to everything and explores no more; widen the upper clip range, keep rollout_temperature: 1, or lower learning_rate"),
    ("grpo", {"policy/kl": line(0, 0.09)}, "policy/kl is 13.8 nats an answer: the policy is leaving the model that it began as; "),
    ("grpo", {"policy/kl": line(0, 0.3)}, "policy/kl is 46.1 nats an answer: the policy has left the model that it began as; raise the weight of the KL, or lower learning_rate"),
    ("ppo", {"rollout/kl": line(0, 50)}, "policy/kl is 47.7 nats an answer: the policy has left"),
    ("grpo", {"policy/clip_high": flat(0.24)}, "policy/clip is 0.25 (healthy: at most 0.2): updates go further than the objective trusts; "),
    ("gspo", {"policy/clip_high": flat(0.35)}, "policy/clip is 0.36 (healthy: at most 0.3): "),
    ("grpo", {"policy/clip_high": flat(0), "policy/clip_low": flat(0)}, "policy/clip was 0 in every step, though ratios went up to 1.6: the clip range is too wide to hold anything back; "),
    ("grpo", {"policy/ratio_max": flat(30)}, "policy/ratio_max is 30 (healthy: at most 10): "),
    ("grpo", {"rollout/flat_groups": line(0.2, 0.9)}, "rollout/flat_groups is 0.868 (healthy: at most 0.5): reward has risen, and prompts that are solved teach nothing more; stop here, or take harder prompts"),
    ("grpo", {"rollout/flat_groups": line(0.2, 0.9), "reward_std": flat(0.6)}, "rollout/flat_groups is 0.868 (healthy: at most 0.5): most prompts teach nothing: "),
    ("grpo", {"rollout/tokens": line(100, 300), "reward": noisy(line(0.4, 0.46), 0.02), "eval_reward": flat(0.4)}, "rollout/tokens grew from 109 to 291 tokens while reward went from 0.411 to 0.465: answers get longer without getting better; "),
    ("grpo", {"rollout/tokens": line(100, 300), "reward": line(0.2, 0.7)}, "rollout/tokens grew from 109 to 291 tokens in step with reward (correlation 1.00): the reward may be paying for length; "),
    ("grpo", {"rollout/cut_off": line(0, 0.4)}, "rollout/cut_off is 0.382 (healthy: at most 0.1): "),
    ("grpo", {"rollout/logp_gap": flat(0.09)}, "rollout/logp_gap is 0.09 (healthy: at most 0.05): the engine answers from other numbers than the trainer learns with; "),
    ("grpo", {"rollout/logp_gap_max": flat(3)}, "rollout/logp_gap_max is 3 (healthy: at most 1): "),
    ("grpo", {"rollout/staleness": flat(2)}, "rollout/staleness is 2 (healthy: at most 1): "),
    ("grpo", {"rollout/rounds": flat(6)}, "rollout/rounds is 6 (healthy: at most 3): "),
    ("ppo", {"value/explained_variance": flat(-0.4)}, "value/explained_variance is -0.40: the value model is worse than a constant; raise critic_learning_rate or critic_warmup_steps"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "curves", "words"), SICK, ids=[f"{i}-{next(iter(c))}" for i, (_, c, _) in enumerate(SICK)]
)
def test_a_rule_speaks(tmp_path: Path, objective: str, curves: dict[str, Curve], words: str) -> None:
    """Alone: nothing else of the same run is called unusual."""
    usual = HEALTHY[objective if objective in HEALTHY else "grpo"]
    (found,) = diagnose(View.of(write(tmp_path, objective, {**usual, **curves})))
    assert str(found)[: len(words)] == words


def test_every_rule_is_tested(tmp_path: Path) -> None:
    spoken: set[tuple[str, str]] = set()
    for number, (objective, curves, _) in enumerate(SICK):
        usual = HEALTHY[objective if objective in HEALTHY else "grpo"]
        found = diagnose(View.of(write(tmp_path / str(number), objective, {**usual, **curves})))
        spoken |= {(each.metric, each.means) for each in found}
    assert spoken == {(rule.metric, rule.means) for rule in RULES}


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_run_that_has_hardly_begun_is_not_judged(tmp_path: Path, steps: int) -> None:
    for number, (objective, curves, _) in enumerate(SICK):
        assert diagnose(View.of(write(tmp_path / str(number), objective, curves, steps, every=2))) == []


def test_one_update_a_rollout_never_clips_and_that_is_fine(tmp_path: Path) -> None:
    curves = {**HEALTHY["grpo"], "policy/clip_high": flat(0), "policy/clip_low": flat(0), "policy/ratio_max": flat(1)}
    assert diagnose(View.of(write(tmp_path, "grpo", curves))) == []


def test_who_has_learned_need_not_doubt(tmp_path: Path) -> None:
    solved = {**HEALTHY["grpo"], "policy/entropy": line(1.3, 0.05, 40), "reward": line(0.2, 1.0)}
    assert diagnose(View.of(write(tmp_path, "grpo", solved))) == []


def test_entropy_that_falls_slowly_or_comes_back_is_fine(tmp_path: Path) -> None:
    for number, curve in enumerate((line(1.3, 0.1, 400), lambda s: 0.1 if 30 < s < 60 else 1.0)):
        usual = {**HEALTHY["grpo"], "reward_std": flat(0.6), "policy/entropy": curve}
        assert diagnose(View.of(write(tmp_path / str(number), "grpo", usual, 400))) == []


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "sft", {**HEALTHY["sft"], "loss": lambda s: None if s % 2 else 2 - s / 100})  # pyright: ignore[reportArgumentType]
    assert len(View.of(tmp_path).series["loss"]) == 50


def test_warnings_come_first_and_values_are_shown(tmp_path: Path) -> None:
    sick = {**HEALTHY["grpo"], "policy/ratio_max": flat(30), "rollout/staleness": flat(2)}
    found = examine(write(tmp_path, "grpo", sick))
    assert [(f["level"], f["metric"]) for f in found["diagnosis"]] == [
        ("warning", "rollout/staleness"),
        ("note", "policy/ratio_max"),
    ]
    assert found["metrics"]["policy/ratio_max"] == {"first": 30, "last": 30, "healthy": "at most 10"}
    assert found["metrics"]["policy/clip_low"]["healthy"] == "0.01-0.2, gspo to 0.3"
    assert found["metrics"]["value/loss"]["healthy"] == ""


def test_docs_have_the_table_of_the_rules() -> None:
    assert table() in DOCS.read_text(encoding="utf-8"), "docs/runs.md: run make docs"


def test_settings_that_rules_name_exist() -> None:
    from luthier.config.schema import SECTIONS

    fields = {name for cls in SECTIONS.values() for name in cls.__dataclass_fields__}
    named = {word for rule in RULES for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", rule.do)}
    assert named - fields <= {"sft_weight", "dr_grpo", "eval_reward"}
