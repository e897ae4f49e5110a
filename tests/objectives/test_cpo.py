"""CPO against numbers computed by hand: the margin is -10 + 14 = 4, the chosen answer's mean is -10 / 4."""

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.objectives.cpo import Cpo


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Cpo(), 0.513015 + 2.5),
        (Cpo(sft_weight=0.0), 0.513015),
        (Cpo(loss="hinge"), 0.6 + 2.5),
        # Means over tokens: -2.5 + 2.8 = 0.3, and (0.3 - 5)^2.
        (Cpo(loss="ipo", sft_weight=0.0), 22.09),
        (Cpo(label_smoothing=0.1, sft_weight=0.0), 0.9 * 0.513015 + 0.1 * 0.913015),
    ],
    ids=str,
)
def test_loss_by_hand(objective: Cpo, expected: float) -> None:
    assert float(objective(*batch_of(CHOSEN, REJECTED)).total) == pytest.approx(expected, abs=1e-5)


def test_gradient_by_hand() -> None:
    """-beta sigmoid(-0.4) = -0.0401312, and a quarter for each of the four tokens that are learned besides."""
    scores, batch = batch_of(CHOSEN, REJECTED)
    Cpo()(scores, batch).total.backward()
    assert scores.logp.grad is not None
    assert scores.logp.grad.tolist() == pytest.approx([-0.0401312 - 0.25] * 4 + [0.0401312] * 5, abs=1e-6)


def test_the_reference_is_not_read() -> None:
    scores, batch = batch_of(CHOSEN, REJECTED)
    bare = Cpo()(scores, batch_of((-10.0, 0.0, 4), (-14.0, 0.0, 5))[1])
    assert torch.equal(Cpo()(scores, batch).total, bare.total)
    assert means(bare)["nll"] == 2.5


def test_smoothing_goes_with_some_losses_only() -> None:
    with pytest.raises(ValueError, match="label_smoothing has no meaning for the loss ipo"):
        Cpo(loss="ipo", label_smoothing=0.1)
