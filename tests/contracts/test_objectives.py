"""Properties of every objective on the shelf."""

import random
from typing import Any, get_args

import pytest
import torch
from helpers import VOCABULARY, segment

from luthier.core.batch import PackedBatch, Scores
from luthier.core.registry import OBJECTIVES
from luthier.core.types import RowKind
from luthier.data.pack import pack

STREAMS = {"reference": ("ref_logp",), "rollouts": ("ref_logp", "old_logp", "correction", "return", "old_value")}
"""What is needed -> streams that batches then have, one number a token; a rollout's advantage is one an answer."""


HOLD_A_WEIGHT_STILL = {"cispo", "gspo_token"}
"""Their gradient is not that of their value, by design; tests/objectives/test_policy_gradient.py says what it is."""


def units_of(objective, count: int):
    units = [[segment(3, 2 + i + j, seed=10 * i + j) for j in range(objective.segments_per_unit)] for i in range(count)]
    names = [name for need in sorted(objective.needs) for name in STREAMS.get(need, ())]
    for number, each in enumerate(s for unit in units for s in unit):
        draw = random.Random(len(each.tokens))
        # Log-probabilities are below 0, and everything else may be, too.
        each.streams = {name: [-draw.uniform(0.5, 4) for _ in each.tokens] for name in dict.fromkeys(names)}
        if "correction" in each.streams:
            each.streams["correction"] = [draw.uniform(0.5, 2) for _ in each.tokens]
        if "rollouts" in objective.needs:
            each.streams["advantage"] = [draw.uniform(-2, 2)] * len(each.tokens)
            each.tags["limit"] = 32.0
        if objective.rows == "tagged":
            each.tags["desirable"] = float(number % 2)
        if "baseline" in objective.needs:
            each.tags["baseline"] = 0.3
    return units


def scores_of(objective, x: torch.Tensor) -> Scores:
    """What `objective` reads, each from its own column of `x`, [N, 3]."""
    columns = {name: x[:, i] for i, name in enumerate(("logp", "entropy", "value")) if name in objective.reads}
    return Scores(**{"logp": x.new_zeros(0), **columns})


def inputs_of(objective, batch: PackedBatch, logp: Any) -> torch.Tensor:
    """Log-probabilities as given, entropies and values around 1."""
    number = len(batch.targets)
    others = torch.linspace(0.8, 1.2, 2 * number, dtype=torch.float64).view(number, 2)
    return torch.cat([torch.as_tensor(logp, dtype=torch.float64)[:, None], others], 1).requires_grad_()


def loss_and_gradient(objective, split):
    torch.manual_seed(3)
    table = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, requires_grad=True)
    batches = [pack(units) for units in split]

    def scores(batch: PackedBatch) -> Scores:
        logits = table[batch.input_ids[batch.rows]]
        every = torch.log_softmax(logits, -1)
        logp = every.gather(1, batch.targets[:, None])[:, 0]
        return scores_of(objective, torch.stack([logp, -(every.exp() * every).sum(-1), logits[:, 0]], 1))

    total = sum(objective(scores(b), b).total for b in batches)
    mean = total / sum(objective.count(b) for b in batches)
    return mean, torch.autograd.grad(mean, table)[0]


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_result_does_not_depend_on_how_the_window_is_split(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    units = units_of(objective, 6)
    loss, gradient = loss_and_gradient(objective, [units])
    for split in ([units[:2], units[2:]], [[unit] for unit in units], [units[:3], units[3:4], units[4:]]):
        other_loss, other_gradient = loss_and_gradient(objective, split)
        torch.testing.assert_close(other_loss, loss)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_finite_for_extreme_log_probabilities(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    batch = pack(units_of(objective, 2))
    for value in (-50.0, 0.0):
        x = inputs_of(objective, batch, [value] * len(batch.targets)).detach().float().requires_grad_()
        total = objective(scores_of(objective, x), batch).total
        assert torch.isfinite(total)
        assert torch.isfinite(torch.autograd.grad(total, x)[0]).all()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES.names() if name not in HOLD_A_WEIGHT_STILL])
def test_gradient_is_that_of_the_loss(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    batch = pack(units_of(objective, 3))
    x = inputs_of(objective, batch, torch.linspace(-3, -1, len(batch.targets)))
    assert torch.autograd.gradcheck(lambda x: objective(scores_of(objective, x), batch).total, x)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_nothing_to_predict_counts_nothing(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    batch = pack(units_of(objective, 2)).without_predictions()
    x = torch.zeros(0, 3, requires_grad=True)
    loss = objective(scores_of(objective, x), batch)
    assert (float(loss.total), float(objective.count(batch))) == (0.0, 0.0)
    assert all(float(total) == float(count) == 0 for total, count in loss.metrics.values())
    loss.total.backward()


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_metrics_have_the_same_names_in_every_batch(name: str) -> None:
    """Ranks add them up by name, one after the other, and would wait for each other otherwise."""
    objective = OBJECTIVES.get(name)()
    units = units_of(objective, 2)
    batches = [pack(units), pack(units[:1]), pack(units[1:]), pack(units).without_predictions()]
    losses = [
        objective(scores_of(objective, inputs_of(objective, b, torch.full((len(b.targets),), -1.0))), b)
        for b in batches
    ]
    assert len({tuple(loss.metrics) for loss in losses}) == 1
    assert len({tuple(loss.peaks) for loss in losses}) == 1


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_settings_and_facts_fit_together(name: str) -> None:
    objective = OBJECTIVES.get(name)
    assert objective.rows in get_args(RowKind)
    assert (objective.rows == "pair") == (objective.segments_per_unit == 2)
    assert objective.rate_factor > 0


def test_sft_by_hand() -> None:
    """Two learned tokens with log-probabilities -1 and -3: sum 4, count 2, mean 2."""
    objective = OBJECTIVES.get("sft")()
    batch = pack([[segment(2, 2)]])
    loss = objective(Scores(logp=torch.tensor([-1.0, -3.0])), batch)
    assert float(loss.total) == 4.0
    assert float(objective.count(batch)) == 2.0


def test_fractional_weights_weigh() -> None:
    objective = OBJECTIVES.get("sft")()
    one = segment(1, 2)
    one.weight[-1] = 0.5
    batch = pack([[one]])
    assert float(objective(Scores(logp=torch.tensor([-1.0, -4.0])), batch).total) == 3.0
    assert float(objective.count(batch)) == 1.5
