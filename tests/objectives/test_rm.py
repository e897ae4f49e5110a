"""Bradley-Terry against numbers computed by hand: rewards 1.2 and 0.4 at the last tokens of the answers."""

import pytest
import torch
from answers import CHOSEN, REJECTED, batch_of, means

from luthier.core.batch import PackedBatch, Scores
from luthier.objectives.rm import RewardModeling


def graded(*rewards: float) -> tuple[Scores, PackedBatch]:
    """Answers of 4 and 5 tokens in turns, whose values before the last token are of no account."""
    _, batch = batch_of(*[(CHOSEN, REJECTED)[i % 2] for i in range(len(rewards))])
    value = torch.full((len(batch.targets),), 77.0, dtype=torch.float64)
    ends = [i for i, s in enumerate(batch.segment_ids.tolist()) if s not in batch.segment_ids.tolist()[i + 1 :]]
    value[ends] = torch.tensor(rewards, dtype=torch.float64)
    return Scores(logp=torch.zeros(0), value=value.requires_grad_()), batch


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (RewardModeling(), 0.371101),
        (RewardModeling(margin=0.5), 0.554355),
        (RewardModeling(centering=0.01), 0.371101 + 0.01 * 1.6**2),
    ],
    ids=str,
)
def test_loss_by_hand(objective: RewardModeling, expected: float) -> None:
    assert float(objective(*graded(1.2, 0.4)).total) == pytest.approx(expected, abs=1e-5)


def test_margins_of_pairs_add_to_the_constant_one() -> None:
    scores, batch = graded(1.2, 0.4, 1.2, 0.4)
    batch = batch.with_tag("margin", torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert float(RewardModeling()(scores, batch).total) == pytest.approx(0.554355 + 0.371101, abs=1e-5)
    batch = batch.with_tag("margin", torch.tensor([0.25, 0.25, 0.25, 0.25]))
    assert float(RewardModeling(margin=0.25)(scores, batch).total) == pytest.approx(2 * 0.554355, abs=1e-5)


def test_gradient_by_hand() -> None:
    """-sigmoid(-0.8) = -0.3100255 at the last token of the chosen answer, the opposite at the rejected one's."""
    scores, batch = graded(1.2, 0.4)
    RewardModeling()(scores, batch).total.backward()
    assert scores.value is not None
    assert scores.value.grad is not None
    expected = [0.0] * 3 + [-0.3100255] + [0.0] * 4 + [0.3100255]
    assert scores.value.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_metrics() -> None:
    loss = RewardModeling()(*graded(1.2, 0.4, -1.0, 0.5))
    assert float(RewardModeling().count(graded(1.2, 0.4, -1.0, 0.5)[1])) == 2
    assert means(loss) == pytest.approx(
        {
            "rewards/chosen": 0.1,
            "rewards/rejected": 0.45,
            "rewards/margins": (0.8 - 1.5) / 2,
            "rewards/accuracies": 0.5,
            "rewards/spread": (0.8 + 1.5) / 2,
        }
    )


def test_far_apart_rewards_stay_finite() -> None:
    for rewards in ((1e4, -1e4), (-1e4, 1e4)):
        scores, batch = graded(*rewards)
        total = RewardModeling(centering=0.01)(scores, batch).total
        assert torch.isfinite(total)
        assert torch.isfinite(torch.autograd.grad(total, scores.value)[0]).all()
