"""Objectives over pairs and tagged answers against TRL 1.16, on the same tokens, in float32: within 1e-4.

Where TRL adds a negative log-likelihood it is a mean over all chosen tokens of a batch; ours is a mean over the tokens of
each answer and then over answers, so that the result does not depend on how a step is split into batches (for ORPO,
arXiv:2403.07691, equations 2 and 6). They agree where chosen answers are equally long, as here.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from trl_side import Answer, answers_of, assert_same, logps_of, near, ours, padded, theirs, trainer_of

from luthier.core.types import Segment
from luthier.objectives.cpo import Cpo
from luthier.objectives.dpo import Dpo
from luthier.objectives.kto import Kto
from luthier.objectives.orpo import Orpo
from luthier.objectives.rm import RewardModeling
from luthier.objectives.simpo import Simpo

trl = pytest.importorskip("trl", reason="the oracle TRL is not installed: pip install trl==1.16.0")
pytestmark = pytest.mark.slow
PAIRS = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
TAGGED = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}


def pairs_of(folder: Path, *lengths: tuple[int, int, int]) -> list[Answer]:
    """(tokens of the prompt, of the chosen, of the rejected answer) each -> chosen and rejected answers in turns."""
    answers = answers_of(*[(prompt, answer) for prompt, *both in lengths for answer in both], shared=True)
    for answer, ref in zip(answers, near(folder, answers, 0.6, 1), strict=True):
        answer.streams = {"ref_logp": ref}
    return answers


def units_of(answers: list[Answer]) -> list[list[Segment]]:
    return [[a.segment(), b.segment()] for a, b in zip(answers[::2], answers[1::2], strict=True)]


DPO = {
    "sigmoid": (Dpo(), {"loss_type": ["sigmoid"]}),
    "sigmoid, beta 0.7": (Dpo(beta=0.7), {"loss_type": ["sigmoid"], "beta": 0.7}),
    "hinge": (Dpo(loss="hinge"), {"loss_type": ["hinge"]}),
    # Means over tokens on both sides; arXiv:2310.12036, equation 17, says sums, its authors say means.
    "ipo": (Dpo(loss="ipo"), {"loss_type": ["ipo"]}),
    "robust": (Dpo(loss="robust", label_smoothing=0.1), {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "rpo": (Dpo(sft_weight=0.5), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
}


@pytest.mark.parametrize("case", DPO)
def test_dpo(folder: Path, case: str) -> None:
    objective, settings = DPO[case]
    answers = pairs_of(folder, (3, 6, 4), (5, 6, 9), (1, 6, 1))
    rows = [
        {
            "prompt_ids": chosen.prompt,
            "chosen_ids": chosen.tokens,
            "rejected_ids": rejected.tokens,
            "ref_chosen_logps": sum(chosen.streams["ref_logp"]),
            "ref_rejected_logps": sum(rejected.streams["ref_logp"]),
        }
        for chosen, rejected in zip(answers[::2], answers[1::2], strict=True)
    ]
    trainer = trainer_of(trl.DPOTrainer, trl.DPOConfig, folder, PAIRS, **settings)
    trainer.precompute_ref_logps = True
    assert_same(ours(folder, objective, units_of(answers)), theirs(trainer, trainer.data_collator(rows)))


CPO = {
    "cpo": (Cpo(), {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "cpo without likelihood": (Cpo(sft_weight=0.0), {"loss_type": "sigmoid", "cpo_alpha": 0.0}),
    "cpo, smoothed": (Cpo(label_smoothing=0.1), {"loss_type": "sigmoid", "cpo_alpha": 1.0, "label_smoothing": 0.1}),
    "cpo, hinge": (Cpo(loss="hinge"), {"loss_type": "hinge", "cpo_alpha": 1.0}),
    "cpo, ipo": (Cpo(loss="ipo"), {"loss_type": "ipo", "cpo_alpha": 1.0}),
    "simpo": (Simpo(), {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}),
    "simpo, smoothed": (
        Simpo(gamma=0.5, label_smoothing=0.2),
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.5, "label_smoothing": 0.2},
    ),
    "cpo-simpo": (Simpo(sft_weight=1.0), {"loss_type": "simpo", "cpo_alpha": 1.0, "beta": 2.0, "simpo_gamma": 1.0}),
}


@pytest.mark.parametrize("case", CPO)
def test_cpo_and_simpo(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    objective, settings = CPO[case]
    answers = pairs_of(folder, (3, 6, 4), (5, 6, 9), (1, 6, 1))
    trainer = trainer_of(CPOTrainer, CPOConfig, folder, PAIRS, **settings)
    assert_same(ours(folder, objective, units_of(answers)), theirs(trainer, labelled(answers)))


def test_orpo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's likelihood takes in the prompt, the paper's (equation 2) the answer: prompts of one token agree."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    answers = pairs_of(folder, (1, 6, 4), (1, 6, 9), (1, 6, 1))
    for beta in (0.1, 2.0):
        trainer = trainer_of(ORPOTrainer, ORPOConfig, folder, PAIRS, beta=beta)
        assert_same(ours(folder, Orpo(beta=beta), units_of(answers)), theirs(trainer, labelled(answers)))


def labelled(answers: list[Answer]) -> dict[str, Tensor]:
    """Padded tokens of chosen and rejected answers, with -100 where nothing is learned."""
    batch: dict[str, Tensor] = {}
    for side, part in (("chosen", answers[::2]), ("rejected", answers[1::2])):
        tokens = [[*a.prompt, *a.tokens] for a in part]
        batch[f"{side}_input_ids"] = padded(tokens, 0)
        batch[f"{side}_attention_mask"] = padded([[1] * len(row) for row in tokens], 0)
        batch[f"{side}_labels"] = padded([[-100] * len(a.prompt) + a.tokens for a in part], -100)
    return batch


@pytest.mark.parametrize("shift", [3.0, -9.0], ids=["mismatched answers gained", "lost, so that the baseline is 0"])
def test_kto(folder: Path, shift: float) -> None:
    """The baseline is the mean over mismatched answers, at least 0; TRL makes it in the loss, we beforehand."""
    answers = answers_of((3, 6), (5, 4), (2, 9), (4, 1))
    mismatched = [Answer(a.prompt, b.tokens) for a, b in zip(answers, [*answers[1:], answers[0]], strict=True)]
    refs, mismatched_logps = near(folder, answers, 0.6, 1), [float(x.sum()) for x in logps_of(folder, mismatched)]
    mismatched_refs = [x - shift - i for i, x in enumerate(mismatched_logps)]
    baseline = max(0.0, sum(a - b for a, b in zip(mismatched_logps, mismatched_refs, strict=True)) / 4)
    assert (baseline > 0) == (shift > 0)
    rows = []
    for i, (answer, ref) in enumerate(zip(answers, refs, strict=True)):
        answer.streams = {"ref_logp": ref}
        answer.tags = {"desirable": float(i % 2 == 0), "baseline": baseline}
        rows.append(
            {
                "prompt_ids": answer.prompt,
                "completion_ids": answer.tokens,
                "KL_completion_ids": mismatched[i].tokens,
                "label": i % 2 == 0,
                "ref_logps": sum(ref),
                "ref_KL_logps": mismatched_refs[i],
            }
        )
    settings: dict[str, Any] = {"desirable_weight": 1.5, "undesirable_weight": 0.5, "beta": 0.3}
    trainer = trainer_of(trl.KTOTrainer, trl.KTOConfig, folder, TAGGED, per_device_train_batch_size=2, **settings)
    trainer.precompute_ref_logps = True
    expected = theirs(trainer, trainer.data_collator(rows))
    assert_same(ours(folder, Kto(**settings), [[a.segment()] for a in answers]), expected)


@pytest.mark.parametrize("with_margin", [False, True])
@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_reward_model(folder: Path, centering: float, with_margin: bool) -> None:
    """The reward is read at the last token of an answer: where a prediction behind it would be made."""
    answers = answers_of(*[(prompt, n) for prompt, *both in ((3, 6, 4), (5, 2, 9)) for n in both], shared=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.score.weight.data.normal_(std=0.3)
    head = model.score.weight.data.clone()
    trainer = trainer_of(
        trl.RewardTrainer,
        trl.RewardConfig,
        folder,
        PAIRS,
        model=model,
        center_rewards_coefficient=centering or None,
    )
    rows, units = [], []
    for margin, (chosen, rejected) in zip((0.5, -0.25), zip(answers[::2], answers[1::2], strict=True), strict=True):
        both = [[*a.prompt, *a.tokens] for a in (chosen, rejected)]
        rows.append({"chosen_ids": both[0], "rejected_ids": both[1], **({"margin": margin} if with_margin else {})})
        tags = {"margin": margin if with_margin else 0.0}
        units.append([Segment(tokens=[*t, 0], weight=[0.0] * len(t) + [1.0], tags=tags) for t in both])
    expected = theirs(trainer, trainer.data_collator(rows))
    assert_same(ours(folder, RewardModeling(centering=centering), units, head), expected)
