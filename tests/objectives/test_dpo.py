"""Every loss of a pair against numbers computed by hand in float64."""

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.config.load import load_config
from luthier.core.errors import ConfigError
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


def with_center(center: float, *answers: tuple[float, float, int]):
    scores, batch = batch_of(*answers)
    return scores, batch.with_tag("center", torch.full((len(answers),), center, dtype=torch.float64))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # Rewards 0.2 and -0.1 about a threshold of 0.05: two times log(1 + exp(-0.15)), which is 0.6209572.
        (Dpo(bco_weight=0.5), (0.554355 + 0.5 * 1.2419144) / 1.5),
        (Dpo(bco_weight=1.0, loss="hinge"), (0.7 + 1.2419144) / 2),
        (Dpo(bco_weight=0.5, sft_weight=0.5), (0.554355 + 0.5 * 1.2419144) / 1.5 + 0.5 * 10 / 4),
    ],
    ids=str,
)
def test_loss_with_a_classifier_by_hand(objective: Dpo, expected: float) -> None:
    loss = objective(*with_center(0.5, CHOSEN, REJECTED))
    assert float(loss.total) == pytest.approx(expected, abs=1e-6)
    assert means(loss)["rewards/threshold"] == pytest.approx(0.05)


def test_gradient_of_a_classifier_by_hand() -> None:
    """Beside DPO's, each reward is driven away from the threshold by beta sigmoid(-0.15) = 0.0462570."""
    scores, batch = with_center(0.5, CHOSEN, REJECTED)
    center_S = batch.tags["center"].requires_grad_()
    Dpo(bco_weight=3.0)(scores, batch).total.backward()
    assert scores.logp.grad is not None
    each = (0.0425557 + 3 * 0.0462570) / 4
    assert scores.logp.grad.tolist() == pytest.approx([-each] * 4 + [each] * 5, abs=1e-7)
    assert center_S.grad is None


def test_what_a_classifier_does_not_go_with() -> None:
    for more in ({"loss": "ipo"}, {"ld_alpha": 0.5}):
        with pytest.raises(ConfigError, match="bco_weight takes plain sums over tokens"):
            load_config({"model_name_or_path": "m", "objective": {"name": "dpo", "bco_weight": 1, **more}})
    assert Dpo().needs == {"reference"}
    assert Dpo(bco_weight=1.0).needs == {"reference", "center"}


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
