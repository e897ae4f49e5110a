"""SimPO against numbers computed by hand: means over tokens are -10 / 4 = -2.5 and -14 / 5 = -2.8."""

import pytest
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.objectives.simpo import Simpo


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # -log sigmoid(2 x 0.3 - 1)
        (Simpo(), 0.913015),
        (Simpo(gamma=0.0), 0.437488),
        (Simpo(beta=10.0, gamma=3.0), 0.6931472),
        (Simpo(sft_weight=1.0), 0.913015 + 2.5),
        (Simpo(label_smoothing=0.1), 0.9 * 0.913015 + 0.1 * 0.513015),
    ],
    ids=str,
)
def test_loss_by_hand(objective: Simpo, expected: float) -> None:
    assert float(objective(*batch_of(CHOSEN, REJECTED)).total) == pytest.approx(expected, abs=1e-5)


def test_gradient_by_hand() -> None:
    """beta sigmoid(0.4) = 1.197375, over the tokens of each answer."""
    scores, batch = batch_of(CHOSEN, REJECTED)
    Simpo()(scores, batch).total.backward()
    assert scores.logp.grad is not None
    assert scores.logp.grad.tolist() == pytest.approx([-1.197375 / 4] * 4 + [1.197375 / 5] * 5, abs=1e-5)


def test_metrics() -> None:
    loss = Simpo()(*batch_of(CHOSEN, REJECTED, REJECTED, CHOSEN))
    assert means(loss) == pytest.approx(
        {
            "rewards/chosen": 2 * (-2.5 - 2.8) / 2,
            "rewards/rejected": 2 * (-2.5 - 2.8) / 2,
            "rewards/margins": 0.0,
            "rewards/accuracies": 0.5,
            "logps/chosen": -12.0,
            "logps/rejected": -12.0,
        }
    )
