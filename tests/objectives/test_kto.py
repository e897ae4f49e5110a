"""KTO against numbers computed by hand: log-ratios 2 (good) and -1 (bad), baseline 0.5, beta 0.1."""

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.core.batch import Scores
from luthier.objectives.kto import Kto


def tagged(*answers: tuple[float, float, int], good: list[float], baseline: float = 0.5):
    scores, batch = batch_of(*answers)
    batch = batch.with_tag("desirable", torch.tensor(good))
    return scores, batch.with_tag("baseline", torch.full((len(good),), baseline, dtype=torch.float64))


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # 1 - sigmoid(0.15), twice: 0.1 (2 - 0.5) and 0.1 (0.5 + 1).
        (Kto(), 2 * 0.462570),
        (Kto(desirable_weight=2.0), 3 * 0.462570),
        (Kto(undesirable_weight=3.0), 4 * 0.462570),
        (Kto(desirable_weight=0.0), 0.462570),
        (Kto(beta=1.0), 2 * 0.182426),
        (Kto(sft_weight=0.2), 2 * 0.462570 + 0.2 * 2.5),
    ],
    ids=str,
)
def test_loss_by_hand(objective: Kto, expected: float) -> None:
    total = objective(*tagged(CHOSEN, REJECTED, good=[1.0, 0.0])).total
    assert float(total) == pytest.approx(expected, abs=1e-5)


def test_each_tag_by_hand() -> None:
    """The same answer as a good and as a bad one: sigmoid(-0.15) and sigmoid(0.15)."""
    for good, expected in ((1.0, 0.462570), (0.0, 0.537430)):
        assert float(Kto()(*tagged(CHOSEN, good=[good])).total) == pytest.approx(expected, abs=1e-5)


def test_gradient_by_hand() -> None:
    """-beta sigmoid(0.15) sigmoid(-0.15) = -0.0248599 at a good answer's tokens, the opposite at a bad one's."""
    scores, batch = tagged(CHOSEN, REJECTED, good=[1.0, 0.0])
    Kto()(scores, batch).total.backward()
    assert scores.logp.grad is not None
    assert scores.logp.grad.tolist() == pytest.approx([-0.0248599] * 4 + [0.0248599] * 5, abs=1e-6)


def test_nothing_is_learned_through_the_baseline() -> None:
    scores, batch = tagged(CHOSEN, good=[1.0])
    baseline = torch.tensor([0.5], requires_grad=True)
    Kto()(scores, batch.with_tag("baseline", baseline)).total.backward()
    assert baseline.grad is None


def test_metrics() -> None:
    """Log-ratios of good answers 2 and 4, of the bad one -1."""
    loss = Kto()(*tagged(CHOSEN, REJECTED, (-8.0, -12.0, 4), good=[1.0, 0.0, 1.0]))
    assert means(loss) == pytest.approx(
        {
            "rewards/accuracies": 1.0,
            "rewards/chosen": 0.3,
            "rewards/rejected": -0.1,
            "logps/chosen": -9.0,
            "logps/rejected": -14.0,
            "kl": 0.5,
        }
    )
    assert {name: float(count) for name, (_, count) in loss.metrics.items()} == {
        "rewards/chosen": 2, "rewards/rejected": 1, "logps/chosen": 2, "logps/rejected": 1, "kl": 3,
        "rewards/accuracies": 3,
    }  # fmt: skip


@pytest.mark.parametrize("good", [0.0, 1.0])
def test_finite_far_away_from_the_reference(good: float) -> None:
    for answer in ((-9000.0, -1.0, 1), (-1.0, -9000.0, 1)):
        scores, batch = tagged(answer, good=[good])
        logp = scores.logp.detach().float().requires_grad_()
        total = Kto()(Scores(logp=logp), batch).total
        assert torch.isfinite(total)
        assert torch.isfinite(torch.autograd.grad(total, logp)[0]).all()


def test_without_annotations_it_is_our_mistake() -> None:
    from dataclasses import replace

    scores, batch = tagged(CHOSEN, good=[1.0])
    with pytest.raises(AssertionError, match="reference's log-probabilities"):
        Kto()(scores, replace(batch, streams={}))
    with pytest.raises(AssertionError, match="baseline of mismatched answers"):
        Kto()(scores, replace(batch, tags={"desirable": batch.tags["desirable"]}))
