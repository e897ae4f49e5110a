"""The formula behind grpo and its kin against numbers computed by hand in float64, and the gradients it promises."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from answers import means, rollout_of

from luthier.config.load import adapter, dump, load_config
from luthier.core.registry import OBJECTIVES
from luthier.objectives import policy_gradient as pg
from luthier.objectives.cispo import Cispo
from luthier.objectives.dapo import Dapo, Dupo
from luthier.objectives.grpo import DrGrpo, Grpo
from luthier.objectives.gspo import Gspo, GspoToken
from luthier.objectives.reinforce import ReinforcePlusPlus, Rloo

ROLLOUT_NAMES = [name for name, cls in OBJECTIVES.items() if "rollouts" in cls().needs]
FREE_GRPO = Grpo(kl_coef=0.0)


def gradient(loss: Any, scores: Any) -> list[float]:
    return torch.autograd.grad(loss.total, scores.logp, retain_graph=True)[0].tolist()


@pytest.mark.parametrize(
    ("objective", "ratio", "advantage", "expected"),
    [
        (FREE_GRPO, 1.5, 1.0, -1.2),
        (FREE_GRPO, 1.5, -1.0, 1.5),
        (FREE_GRPO, 0.5, 1.0, -0.5),
        (FREE_GRPO, 0.5, -1.0, 0.8),
        (Dapo(), 1.5, 1.0, -1.28),
        (Dupo(), 1.5, 1.0, -1.28),
        (Cispo(), 1.5, 1.0, 1.28),  # log p is -1
        (Cispo(), 0.5, 1.0, 0.5),
        (Cispo(), 0.5, -1.0, -0.5),
        (Gspo(), 1.5, 1.0, -1.0004),
        (Gspo(), 0.5, -1.0, 0.9997),
        (Rloo(kl_coef=0.0), 1.5, 1.0, 1.0),
        (ReinforcePlusPlus(kl_coef=0.0), 1.5, 1.0, -1.2),
    ],
)
def test_loss_of_a_token_by_hand(objective: Any, ratio: float, advantage: float, expected: float) -> None:
    scores, batch = rollout_of([[-1.0]], old=[[-1.0 - math.log(ratio)]], advantages=[advantage])
    assert float(objective(scores, batch).total) == pytest.approx(expected, abs=1e-6)


def test_a_sequence_has_one_ratio() -> None:
    """Log-ratios .02, -.01, .005: the geometric mean is 1.0050125, above 1.0004."""
    scores, batch = rollout_of([[-1.0, -2.0, -3.0]], old=[[-1.02, -1.99, -3.005]], advantages=[1.0])
    loss = Gspo()(scores, batch)
    assert means(loss)["policy/ratio"] == pytest.approx(1.0050125, abs=1e-7)
    assert float(loss.total) == pytest.approx(-1.0004, abs=1e-7)
    assert means(loss)["policy/clip_high"] == 1.0
    assert gradient(loss, scores) == [0.0, 0.0, 0.0]
    assert float(Gspo(clip_high=0.2)(scores, batch).total) == pytest.approx(-1.0050125, abs=1e-7)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(FREE_GRPO, 1.5), (Dapo(), 10 / 6), (DrGrpo(), 0.625), (Rloo(kl_coef=0.0, surrogate="clipped"), 5.0)],
)
def test_means_over_tokens_and_answers(objective: Any, expected: float) -> None:
    """Answers of 2 and 4 tokens whose token losses are all 1 and all 2; answers may have 8 tokens."""
    scores, batch = rollout_of([[-1.0] * 2, [-1.0] * 4], advantages=[-1.0, -2.0], limit=8)
    total, count = objective(scores, batch).total, objective.count(batch)
    assert float(total / count) == pytest.approx(expected, abs=1e-7)


def test_dr_grpo_is_grpo_with_two_settings() -> None:
    scores, batch = rollout_of([[-1.0] * 2, [-1.5] * 4], advantages=[-1.0, -2.0], limit=8)
    same = replace(FREE_GRPO, aggregation="limit", scale_rewards=False)
    assert float(same(scores, batch).total) == float(DrGrpo()(scores, batch).total)
    rewards_G = torch.tensor([1.0, 0.0, 0.0])
    assert same.advantages(rewards_G).tolist() == DrGrpo().advantages(rewards_G).tolist()


@pytest.mark.parametrize(
    ("objective", "rewards", "expected"),
    [
        (Grpo(), [1, 0, 0, 1], [0.86588, -0.86588, -0.86588, 0.86588]),
        (DrGrpo(), [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        (Rloo(), [1, 0, 0, 1], [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
        (Rloo(), [3, 0], [3, -3]),
        (ReinforcePlusPlus(), [1, 0, 5], [1, 0, 5]),
        (ReinforcePlusPlus(baseline="group"), [1, 0, 5], [-1, -2, 3]),
        (ReinforcePlusPlus(), [2], [2]),
    ],
)
def test_advantages_by_hand(objective: Any, rewards: list[float], expected: list[float]) -> None:
    found_G = objective.advantages(torch.tensor(rewards, dtype=torch.float32))
    assert found_G.dtype == torch.float64
    assert found_G.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in ROLLOUT_NAMES if OBJECTIVES.get(name).smallest_group == 2])
def test_equal_rewards_give_exactly_nothing(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    for rewards in ([0.1] * 3, [-7.3] * 8, [1e30] * 4, [0.7], []):
        assert objective.advantages(torch.tensor(rewards)).tolist() == [0.0] * len(rewards)


def test_rewards_that_hardly_differ_are_not_blown_up() -> None:
    found_G = Grpo().advantages(torch.tensor([1.0, 1.0 + 1e-9], dtype=torch.float64))
    assert found_G.abs().max() < 1e-4


def test_credit_of_a_group_is_the_same_at_every_token() -> None:
    advantage_T, return_T = Grpo().credit(torch.tensor(0.7), torch.zeros(3, dtype=torch.float64), None)
    assert return_T is None
    assert advantage_T.tolist() == pytest.approx([0.7] * 3)


def test_penalties_count_from_their_token_on() -> None:
    """Score 1, penalties .1 .2 .3: still to come are 1 - .6, 1 - .5 and 1 - .3."""
    penalty_T = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    advantage_T, _ = ReinforcePlusPlus().credit(torch.tensor(1.0, dtype=torch.float64), penalty_T, None)
    assert advantage_T.tolist() == pytest.approx([0.4, 0.5, 0.7], abs=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", 0.106531)])
def test_estimates_of_the_kl_divergence(kind: Any, expected: float) -> None:
    found = pg.kl_estimate(kind, torch.tensor([-1.0]), torch.tensor([-1.5]))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_k3_is_right_on_average_and_never_negative() -> None:
    torch.manual_seed(0)
    logp_V, ref_V = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    truth = float((logp_V.exp() * (logp_V - ref_V)).sum())
    k3_V = pg.kl_estimate("k3", logp_V, ref_V)
    assert float((logp_V.exp() * k3_V).sum()) == pytest.approx(truth, abs=1e-12)
    assert (k3_V >= 0).all()


def test_kl_term_of_the_loss_by_hand() -> None:
    """Two tokens with k3 0.106531 and 0, at coefficient 0.04 and ratio 1."""
    scores, batch = rollout_of([[-1.0, -2.0]], advantages=[1.0], ref=[[-1.5, -2.0]])
    loss = Grpo()(scores, batch)
    assert float(loss.total) == pytest.approx(-1.0 + 0.04 * 0.106531 / 2, abs=1e-7)
    assert means(loss)["policy/kl"] == pytest.approx(0.106531 / 2, abs=1e-6)
    # d/dlp: -A / 2 + 0.04 (1 - exp(ref - lp)) / 2.
    expected = [-0.5 + 0.02 * (1 - math.exp(-0.5)), -0.5]
    assert gradient(loss, scores) == pytest.approx(expected, abs=1e-9)


def test_the_reference_is_needed_where_the_policy_is_held_to_it() -> None:
    assert Grpo().needs == {"rollouts", "reference"}
    assert Grpo(kl_coef=0.0).needs == Dapo().needs == {"rollouts"}
    assert (Grpo().penalty, Rloo().penalty, ReinforcePlusPlus().penalty) == ("none", "answer", "token")
    assert Rloo(kl_coef=0.0).penalty == "none"
    assert Grpo().next_kl_coef(0.04, 100.0, 64) == 0.04
    scores, batch = rollout_of([[-1.0]], advantages=[1.0])
    with pytest.raises(AssertionError, match="collector"):
        Grpo()(scores, batch)


def test_no_gradient_behind_the_bounds_and_all_of_it_before() -> None:
    """Ratios 1.5 and 0.5 with advantages 1 and -1: only where the bound is passed in the direction of the advantage."""
    logp, old = [[-1.0], [-1.0], [-1.0], [-1.0]], [[-1 - math.log(r)] for r in (1.5, 1.5, 0.5, 0.5)]
    scores, batch = rollout_of(logp, old=old, advantages=[1.0, -1.0, 1.0, -1.0])
    loss = Dapo()(scores, batch)
    assert gradient(loss, scores) == pytest.approx([0.0, 1.5, -0.5, 0.0], abs=1e-9)
    found = means(loss)
    assert (found["policy/clip_low"], found["policy/clip_high"], found["policy/ratio"]) == pytest.approx(
        (0.25, 0.25, 1)
    )
    assert float(loss.peaks["policy/ratio_max"]) == pytest.approx(1.5)
    # CISPO: -weight x A everywhere, with weights of at most 1.28.
    loss = Cispo()(scores, batch)
    assert gradient(loss, scores) == pytest.approx([-1.28, 1.28, -0.5, 0.5], abs=1e-9)
    assert (means(loss)["policy/clip_low"], means(loss)["policy/clip_high"]) == (0.0, 0.5)


def test_gradient_of_gspo_is_that_of_the_paper() -> None:
    """arXiv:2507.18071, equation 10: s_i A_i times the mean over tokens of the gradient of log p, for each answer."""
    logp, old = [[-1.0, -2.0, -0.5], [-3.0, -1.0]], [[-1.1, -1.9, -0.6], [-3.2, -1.1]]
    scores, batch = rollout_of(logp, old=old, advantages=[0.7, -1.3])
    objective = Gspo(clip_low=1.0, clip_high=9.0)
    expected = [
        -advantage * math.exp((sum(now) - sum(then)) / len(now)) / len(now)
        for now, then, advantage in zip(logp, old, (0.7, -1.3), strict=True)
        for _ in now
    ]
    assert gradient(objective(scores, batch), scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("high", [9.0, 0.1])
def test_gspo_token_is_gspo_where_advantages_are_equal(high: float) -> None:
    """Equations 13 to 17 of the paper: the same value, the same bounds, the same gradient."""
    logp, old = [[-1.0, -2.0, -0.5], [-3.0, -1.0]], [[-1.1, -1.9, -0.6], [-3.2, -1.1]]
    scores, batch = rollout_of(logp, old=old, advantages=[0.7, -1.3])
    one, other = (kind(clip_low=1.0, clip_high=high)(scores, batch) for kind in (Gspo, GspoToken))
    assert float(one.total) == pytest.approx(float(other.total), abs=1e-12)
    assert gradient(one, scores) == pytest.approx(gradient(other, scores), abs=1e-12)
    assert means(one) == pytest.approx(means(other))


def test_gspo_token_weighs_each_token_with_its_own_advantage() -> None:
    scores, batch = rollout_of([[-1.0, -2.0]], old=[[-1.2, -2.0]], advantages=[1.0])
    batch = replace(batch, streams={**batch.streams, "advantage": torch.tensor([1.0, -2.0], dtype=torch.float64)})
    found = gradient(GspoToken(clip_low=1.0, clip_high=9.0)(scores, batch), scores)
    assert found == pytest.approx([-math.exp(0.1) / 2, math.exp(0.1)], abs=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "dupo", "gspo", "gspo_token", "reinforce++"])
def test_first_update_has_ratio_1_and_the_gradient_of_reinforce(name: str) -> None:
    """Without old log-probabilities they are the policy's own; so they are where they are given and nothing moved."""
    objective = adapter(OBJECTIVES.get(name)).validate_python({"kl_coef": 0.0})
    logp = [[-1.0, -2.0, -0.5], [-3.0, -1.0]]
    absent = rollout_of(logp, advantages=[0.7, -1.3], limit=4)
    given = rollout_of(logp, old=logp, advantages=[0.7, -1.3], limit=4)
    losses = [objective(*each) for each in (absent, given)]
    assert gradient(losses[0], absent[0]) == pytest.approx(gradient(losses[1], given[0]), abs=1e-12)
    assert means(losses[0])["policy/ratio"] == 1.0
    plain = replace(objective, surrogate="plain")
    assert gradient(losses[0], absent[0]) == pytest.approx(gradient(plain(*absent), absent[0]), abs=1e-12)


def test_gradient_of_rloo_is_that_of_the_whole_answer() -> None:
    scores, batch = rollout_of([[-1.0, -2.0], [-3.0]], advantages=[0.7, -1.3])
    assert gradient(Rloo(kl_coef=0.0)(scores, batch), scores) == pytest.approx([-0.7, -0.7, 1.3])
    assert float(Rloo().count(batch)) == 2


def test_correction_weighs_the_policy_and_not_the_kl_term() -> None:
    scores, batch = rollout_of([[-1.0, -2.0]], advantages=[1.0], ref=[[-1.5, -2.0]])
    weighed = batch.with_stream("correction", torch.tensor([2.0, 0.5], dtype=torch.float64))
    assert float(Grpo()(scores, weighed).total) == pytest.approx(-1.25 + 0.04 * 0.106531 / 2, abs=1e-7)


def test_entropy_is_taken_from_the_loss() -> None:
    scores, batch = rollout_of([[-1.0, -2.0]], advantages=[1.0], entropy=0.3)
    assert float(Grpo(kl_coef=0.0, entropy_coef=0.5)(scores, batch).total) == pytest.approx(-1.0 - 0.15)
    assert means(FREE_GRPO(scores, batch))["policy/entropy"] == pytest.approx(0.3)


def test_divergence_from_the_policy_that_answered() -> None:
    """At old -1.5 and log p -1: ratio - 1 - log ratio = 0.1487213."""
    scores, batch = rollout_of([[-1.0]], old=[[-1.5]], advantages=[1.0])
    assert means(FREE_GRPO(scores, batch))["policy/kl_old"] == pytest.approx(math.exp(0.5) - 1.5, abs=1e-9)


@pytest.mark.parametrize("name", ROLLOUT_NAMES)
def test_nothing_is_ever_not_a_number(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    for now in (-1e4, -500.0, -1.0, 0.0):
        for then in (-1e4, -500.0, -1.0, 0.0):
            for advantage in (-3.0, 0.0, 3.0):
                scores, batch = rollout_of(
                    [[now, -1.0]], old=[[then, -1.0]], ref=[[then, -1.0]], advantages=[advantage], dtype=torch.float32
                )
                loss = objective(scores, batch)
                assert torch.isfinite(loss.total)
                assert torch.isfinite(torch.autograd.grad(loss.total, scores.logp)[0]).all()
                assert all(math.isfinite(x) for x in means(loss).values() if name != "ppo")


def test_an_answer_without_learned_tokens_counts_and_adds_nothing() -> None:
    scores, batch = rollout_of([[-1.0, -1.0], []], advantages=[-1.0, 5.0])
    assert float(FREE_GRPO(scores, batch).total) == pytest.approx(1.0)
    assert float(FREE_GRPO.count(batch)) == 2


@pytest.mark.parametrize("name", ROLLOUT_NAMES)
def test_settings_are_explained_and_survive_a_file(name: str) -> None:
    cls = OBJECTIVES.get(name)
    properties = adapter(cls).json_schema()["properties"]
    assert all(facts.get("description") for facts in properties.values())
    config = load_config({"model_name_or_path": "m", "objective": {"name": name, "clip_high": 0.3}}).config
    again = load_config(dump(config)).config
    assert again == config
    assert (OBJECTIVES.name_of(again.objective), again.objective.clip_high) == (name, 0.3)
    assert {key: facts["default"] for key, facts in properties.items()} == {
        key: getattr(cls(), key) for key in properties
    }


@pytest.mark.parametrize("name", ROLLOUT_NAMES)
def test_facts_of_rollout_objectives(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    assert objective.reads >= {"logp", "entropy"}
    assert (objective.rows, objective.segments_per_unit) == ("prompt", 1)
    assert objective.smallest_group in (1, 2)
    assert objective.usual_epochs == (4 if name == "ppo" else 1)
    assert objective.usual_minibatches == (4 if name.startswith("gspo") else 1)
    assert objective.whitens == (name in ("ppo", "reinforce++"))
    assert objective.on_equal_rewards == {"dapo": "resample", "dupo": "duplicate"}.get(name, "keep")
