"""ORPO against numbers computed by hand: means over tokens are -2.5 and -2.8, their log-odds -2.414350 and -2.737262."""

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.objectives.orpo import Orpo


@pytest.mark.parametrize(
    ("objective", "expected"), [(Orpo(), 2.554467), (Orpo(beta=0.0), 2.5), (Orpo(beta=1.0), 3.044669)], ids=str
)
def test_loss_by_hand(objective: Orpo, expected: float) -> None:
    assert float(objective(*batch_of(CHOSEN, REJECTED)).total) == pytest.approx(expected, abs=1e-5)


def test_metrics() -> None:
    found = means(Orpo()(*batch_of(CHOSEN, REJECTED)))
    assert found == pytest.approx(
        {
            "rewards/chosen": -0.25,
            "rewards/rejected": -0.28,
            "rewards/margins": 0.03,
            "rewards/accuracies": 1.0,
            "logps/chosen": -10.0,
            "logps/rejected": -14.0,
            "nll": 2.5,
            "log_odds_ratio": 0.322912,
            "odds_ratio_loss": 0.544669,
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-5, -40.0, -9000.0])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e-5, -40.0, -9000.0])
def test_finite_where_an_answer_is_certain(chosen: float, rejected: float, dtype: torch.dtype) -> None:
    scores, batch = batch_of((chosen, 0.0, 1), (rejected, 0.0, 1))
    logp = scores.logp.detach().to(dtype).requires_grad_()
    total = Orpo()(type(scores)(logp=logp), batch).total
    assert torch.isfinite(total)
    assert torch.isfinite(torch.autograd.grad(total, logp)[0]).all()


def test_odds_are_exact_near_certainty() -> None:
    """log p = -1e-4: the odds are 1 / (e^1e-4 - 1), whose logarithm is 9.210290."""
    scores, batch = batch_of((-1e-4, 0.0, 1), (-0.6931472, 0.0, 1))
    logp = scores.logp.detach().float()
    found = means(Orpo()(type(scores)(logp=logp), batch))
    assert found["log_odds_ratio"] == pytest.approx(9.210290, abs=1e-4)
