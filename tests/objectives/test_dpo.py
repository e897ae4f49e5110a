"""Every loss of a pair against numbers computed by hand in float64."""

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.objectives.dpo import Dpo


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Dpo(), 0.554355),
        (Dpo(label_smoothing=0.1), 0.584355),
        (Dpo(loss="robust", label_smoothing=0.1), 0.516855),
        (Dpo(loss="robust"), 0.554355),
        (Dpo(loss="hinge"), 0.7),
        (Dpo(sft_weight=0.5), 0.554355 + 0.5 * 10 / 4),
        # Means over tokens: 2 / 4 - (-1) / 5 = 0.7, and (0.7 - 5)^2.
        (Dpo(loss="ipo"), 18.49),
        (Dpo(loss="ipo", beta=0.5), 0.09),
        (Dpo(beta=1.0), 0.0485874),
    ],
    ids=str,
)
def test_loss_by_hand(objective: Dpo, expected: float) -> None:
    assert float(objective(*batch_of(CHOSEN, REJECTED)).total) == pytest.approx(expected, abs=1e-6)


def test_gradient_by_hand() -> None:
    """d/d log p(chosen) = -beta sigmoid(-beta m), and the opposite for the rejected answer, at each of their tokens."""
    scores, batch = batch_of(CHOSEN, REJECTED)
    Dpo()(scores, batch).total.backward()
    assert scores.logp.grad is not None
    assert scores.logp.grad.tolist() == pytest.approx([-0.0425557] * 4 + [0.0425557] * 5, abs=1e-7)


def test_sums_counts_and_metrics() -> None:
    """Two pairs, the second with the answers swapped: margins 3 and -3."""
    scores, batch = batch_of(CHOSEN, REJECTED, REJECTED, CHOSEN)
    loss = Dpo()(scores, batch)
    assert float(loss.total) == pytest.approx(0.554355 + 0.854355, abs=1e-6)
    assert float(Dpo().count(batch)) == 2
    assert means(loss) == pytest.approx(
        {
            "rewards/chosen": 0.1 * (2 - 1) / 2,
            "rewards/rejected": 0.1 * (-1 + 2) / 2,
            "rewards/margins": 0.0,
            "rewards/accuracies": 0.5,
            "logps/chosen": -12.0,
            "logps/rejected": -12.0,
        }
    )


def test_far_apart_answers_stay_finite() -> None:
    for first, second in (((-9000.0, -1.0, 1), (-1.0, -9000.0, 1)), ((-1.0, -9000.0, 1), (-9000.0, -1.0, 1))):
        scores, batch = batch_of(first, second)
        for loss in ("sigmoid", "hinge", "ipo", "robust"):
            total = Dpo(loss=loss)(scores, batch).total
            assert torch.isfinite(total)
            assert torch.isfinite(torch.autograd.grad(total, scores.logp)[0]).all()


def test_without_a_reference_it_is_our_mistake() -> None:
    from dataclasses import replace

    scores, batch = batch_of(CHOSEN, REJECTED)
    with pytest.raises(AssertionError, match="annotates"):
        Dpo()(scores, replace(batch, streams={}))


def test_equal_policies_learn_nothing_but_direction() -> None:
    """At the start policy and reference agree: the loss is log 2, and half of the pairs are right, whatever they are."""
    scores, batch = batch_of((-10.0, -10.0, 4), (-30.0, -30.0, 7))
    loss = Dpo()(scores, batch)
    assert float(loss.total) == pytest.approx(0.6931472)
    assert means(loss)["rewards/accuracies"] == 0.5
