"""PPO against numbers computed by hand in float64."""

import math

import pytest
import torch
from answers import means, rollout_of

from luthier.config.load import load_config
from luthier.core.errors import ConfigError
from luthier.objectives import policy_gradient as pg
from luthier.objectives.ppo import Ppo

FREE = Ppo(kl_coef=0.0, value_coef=0.0)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"), [(1.5, 1.0, -1.2), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.8)]
)
def test_policy_loss_by_hand(ratio: float, advantage: float, expected: float) -> None:
    scores, batch = rollout_of([[-1.0]], old=[[-1.0 - math.log(ratio)]], advantages=[advantage])
    assert float(FREE(scores, batch).total) == pytest.approx(expected, abs=1e-7)


def test_generalized_advantages_by_hand() -> None:
    """Values .5 .6 .7, rewards 0 0 1."""
    found_T = pg.generalized_advantages(vector(0, 0, 1), vector(0.5, 0.6, 0.7), 1.0, 0.95)
    assert found_T.tolist() == pytest.approx([0.46575, 0.385, 0.3], abs=1e-12)


def test_generalized_advantages_are_the_sum_that_defines_them() -> None:
    """arXiv:1506.02438, equation 16: the sum over l of (gamma lambda)^l d_(t+l)."""
    torch.manual_seed(0)
    reward_T, value_T, gamma, lam = *torch.randn(2, 9, dtype=torch.float64), 0.9, 0.8
    delta_T = reward_T + gamma * torch.cat([value_T[1:], vector(0)]) - value_T
    expected = [sum((gamma * lam) ** k * float(delta_T[t + k]) for k in range(9 - t)) for t in range(9)]
    assert pg.generalized_advantages(reward_T, value_T, gamma, lam).tolist() == pytest.approx(expected, abs=1e-12)


def test_credit_puts_the_score_at_the_last_token() -> None:
    advantage_T, return_T = Ppo().credit(torch.tensor(1.0), vector(0, 0, 0), vector(0.5, 0.6, 0.7))
    assert advantage_T.tolist() == pytest.approx([0.46575, 0.385, 0.3], abs=1e-12)
    assert return_T is not None
    assert return_T.tolist() == pytest.approx([0.96575, 0.985, 1.0], abs=1e-12)


def test_penalties_lower_the_reward_of_their_token() -> None:
    """With lambda 1 and no values an advantage is what is still to come."""
    penalty_T = vector(0.1, 0.2, 0.3)
    advantage_T, return_T = Ppo(lam=1.0).credit(torch.tensor(1.0), penalty_T, vector(0, 0, 0))
    assert advantage_T.tolist() == pytest.approx([0.4, 0.5, 0.7], abs=1e-7)
    assert penalty_T.tolist() == [0.1, 0.2, 0.3]
    only_now = Ppo(lam=0.0, gamma=0.0).credit(torch.tensor(1.0), penalty_T, vector(0, 0, 0))[0]
    assert only_now.tolist() == pytest.approx([-0.1, -0.2, 0.7], abs=1e-7)
    assert return_T is not None


def test_an_answer_without_tokens_has_no_credit() -> None:
    advantage_T, return_T = Ppo().credit(torch.tensor(1.0), vector(), vector())
    assert advantage_T.tolist() == []
    assert return_T is not None
    assert return_T.tolist() == []


def test_scores_are_not_compared_with_each_other() -> None:
    assert Ppo().advantages(torch.tensor([1.0, 1.0, 0.5])).tolist() == [1.0, 1.0, 0.5]
    assert Ppo().smallest_group == 1


@pytest.mark.parametrize(
    ("value", "old", "expected"),
    [
        (0.5, 0.5, 0.5 * 0.25),  # nothing moved
        (0.9, 0.5, 0.5 * 0.09),  # towards the return 1, bounded at 0.7: (0.7 - 1)^2 is the larger square
        (0.1, 0.5, 0.5 * 0.81),  # away from it, free: (0.1 - 1)^2 is the larger square
    ],
)
def test_value_loss_by_hand(value: float, old: float, expected: float) -> None:
    scores, batch = rollout_of([[-1.0]], advantages=[0.0], old_value=[[old]], **{"return": [[1.0]]})
    assert scores.value is not None
    scores.value.data.fill_(value)
    loss = Ppo(kl_coef=0.0, value_coef=0.1)(scores, batch)
    assert float(loss.total) == pytest.approx(0.1 * expected, abs=1e-12)
    assert means(loss)["value/loss"] == pytest.approx(expected, abs=1e-12)
    clipped = value == 0.9
    assert means(loss)["value/clip_fraction"] == float(clipped)
    (gradient,) = torch.autograd.grad(loss.total, scores.value)
    assert float(gradient) == pytest.approx(0.0 if clipped else 0.1 * (value - 1.0), abs=1e-12)
    free = Ppo(kl_coef=0.0, value_coef=0.1, value_clip=None)(scores, batch)
    assert float(free.total) == pytest.approx(0.05 * (value - 1) ** 2, abs=1e-12)


def test_explained_variance_over_several_batches() -> None:
    """Returns 0 2 and 1 3 with values 0 1 and 1 3: 1 - (0.5 + 0) / (2 + 2)."""
    parts = []
    for returns, values in (((0.0, 2.0), (0.0, 1.0)), ((1.0, 3.0), (1.0, 3.0))):
        scores, batch = rollout_of([[-1.0, -1.0]], advantages=[0.0], **{"return": [returns]})
        assert scores.value is not None
        scores.value.data.copy_(vector(*values))
        parts.append(Ppo(kl_coef=0.0)(scores, batch).metrics["value/explained_variance"])
    assert float(sum(part[0] for part in parts) / sum(part[1] for part in parts)) == pytest.approx(1 - 0.5 / 4)


@pytest.mark.parametrize(("estimate", "expected"), [("k2", 0.125), ("k3", 0.106531)])
def test_kl_term_of_the_loss_by_hand(estimate: str, expected: float) -> None:
    scores, batch = rollout_of([[-1.0]], advantages=[0.0], ref=[[-1.5]])
    objective = Ppo(kl_in="loss", kl_coef=0.3, kl_estimate=estimate, value_coef=0.0)
    assert float(objective(scores, batch).total) == pytest.approx(0.3 * expected, abs=1e-6)
    assert objective.penalty == "none"


def test_kl_penalties_are_not_counted_twice() -> None:
    scores, batch = rollout_of([[-1.0]], advantages=[0.0], ref=[[-1.5]])
    assert float(Ppo()(scores, batch).total) == 0.0
    assert (Ppo().penalty, Ppo(kl_coef=0.0).penalty) == ("token", "none")


def test_coefficient_of_the_kl_divergence_adapts() -> None:
    """Target 6 nats an answer, horizon 10000, 500 answers: up or down by at most 1 %."""
    adapts = Ppo(kl_target=6.0)
    for measured, factor in ((12.0, 1.01), (6.6, 1.005), (6.0, 1.0), (5.4, 0.995), (-3.0, 0.99)):
        assert adapts.next_kl_coef(0.05, measured, 500) == pytest.approx(0.05 * factor, abs=1e-12)
    assert Ppo().next_kl_coef(0.05, 12.0, 500) == 0.05
    assert pg.adapted_kl_coef(0.1, 0.0, 6.0, 1000, 10000.0) == pytest.approx(0.098)


def test_a_target_for_a_fixed_coefficient_is_refused() -> None:
    for more in ({"kl_in": "loss"}, {"kl_coef": 0}):
        with pytest.raises(ConfigError, match="kl_target moves the kl_coef of rewards; set kl_in: token and a kl_coef"):
            load_config({"model_name_or_path": "m", "objective": {"name": "ppo", "kl_target": 6, **more}})


def test_what_it_needs() -> None:
    assert Ppo().needs == {"rollouts", "value", "reference"}
    assert Ppo(kl_coef=0.0).needs == {"rollouts", "value"}
    assert Ppo.reads == {"logp", "entropy", "value"}
