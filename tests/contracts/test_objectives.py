"""Properties of every objective on the shelf."""

import random

import pytest
import torch
from helpers import VOCABULARY, segment

from luthier.core.batch import Scores
from luthier.core.registry import OBJECTIVES
from luthier.data.pack import pack


def units_of(objective, count: int):
    units = [[segment(3, 2 + i + j, seed=10 * i + j) for j in range(objective.segments_per_unit)] for i in range(count)]
    if "reference" in objective.needs:
        for each in (segment for unit in units for segment in unit):
            draw = random.Random(len(each.tokens))
            each.streams["ref_logp"] = [-draw.uniform(1, 9) for _ in each.tokens]
    return units


def loss_and_gradient(objective, split):
    torch.manual_seed(3)
    table = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, requires_grad=True)
    batches = [pack(units) for units in split]
    total = sum(
        objective(Scores(logp=torch.log_softmax(table, -1)[b.input_ids[b.rows], b.targets]), b).total for b in batches
    )
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
        logp = torch.full((len(batch.targets),), value, requires_grad=True)
        total = objective(Scores(logp=logp), batch).total
        assert torch.isfinite(total)
        assert torch.isfinite(torch.autograd.grad(total, logp)[0]).all()


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_gradient_is_that_of_the_loss(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    batch = pack(units_of(objective, 3))
    logp = torch.linspace(-3, -1, len(batch.targets), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: objective(Scores(logp=x), batch).total, logp)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_nothing_to_predict_counts_nothing(name: str) -> None:
    objective = OBJECTIVES.get(name)()
    batch = pack(units_of(objective, 2)).without_predictions()
    logp = torch.zeros(0, requires_grad=True)
    loss = objective(Scores(logp=logp), batch)
    assert (float(loss.total), float(objective.count(batch))) == (0.0, 0.0)
    assert all(float(total) == float(count) == 0 for total, count in loss.metrics.values())
    loss.total.backward()


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_settings_and_facts_fit_together(name: str) -> None:
    objective = OBJECTIVES.get(name)
    assert objective.rows in ("text", "answer", "pair")
    assert objective.rows != "pair" or objective.segments_per_unit == 2


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
