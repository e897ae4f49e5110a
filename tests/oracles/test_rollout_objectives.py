"""Objectives over rollouts against TRL 1.16, on the same tokens, in float32: loss and gradients within 1e-4.

TRL's names for the same things: `loss_type` chooses aggregation and surrogate, `importance_sampling_level` the ratio.
Its `use_bias_correction_kl` multiplies the KL term by the ratio (arXiv:2512.02556); arXiv:2402.03300, equations 3 and 4,
does not, and we follow that.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl_side import Answer, answers_of, assert_same, logps_of, near, ours, padded, theirs, trainer_of

from luthier.objectives.cispo import Cispo
from luthier.objectives.dapo import Dapo
from luthier.objectives.grpo import DrGrpo, Grpo
from luthier.objectives.gspo import Gspo, GspoToken
from luthier.objectives.reinforce import Rloo

trl = pytest.importorskip("trl", reason="the oracle TRL is not installed: pip install trl==1.16.0")
pytestmark = pytest.mark.slow
LIMIT = 12
ADVANTAGES = (1.2, -0.4, 0.3, -1.1, 0.8, -0.8)
PROMPTS = {"prompt": ["a", "b"]}


def rollout(folder: Path, *, spread: float = 0.3, old: bool = True) -> list[Answer]:
    """Six answers, two to a prompt."""
    answers = answers_of((3, 2), (3, 7), (5, 4), (5, 9), (1, 6), (1, 1), shared=True)
    refs, olds = near(folder, answers, 0.5, 1), near(folder, answers, spread, 2)
    for answer, ref, then, advantage in zip(answers, refs, olds, ADVANTAGES, strict=True):
        answer.streams = {"ref_logp": ref, "advantage": [advantage] * len(answer.tokens)}
        if old:
            answer.streams["old_logp"] = then
        answer.tags = {"limit": float(LIMIT)}
    return answers


def trl_batch(answers: list[Answer]) -> dict[str, torch.Tensor]:
    mask = padded([[1] * len(a.tokens) for a in answers], 0)
    batch = {
        "prompt_ids": padded([a.prompt for a in answers], 0, left=True),
        "prompt_mask": padded([[1] * len(a.prompt) for a in answers], 0, left=True),
        "completion_ids": padded([a.tokens for a in answers], 0),
        "completion_mask": mask,
        "advantages": torch.tensor(ADVANTAGES),
        "num_items_in_batch": mask.sum(),
        "ref_per_token_logps": padded([a.streams["ref_logp"] for a in answers], 0.0),
    }
    if "old_logp" in answers[0].streams:
        batch["old_per_token_logps"] = padded([a.streams["old_logp"] for a in answers], 0.0)
    return batch


def grpo_trainer(folder: Path, **settings: Any) -> Any:
    rewards = {"trainer": {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}}
    sizes = {"num_generations": 2, "per_device_train_batch_size": 6, "steps_per_generation": 1}
    more = {"max_completion_length": LIMIT, "use_bias_correction_kl": False, **sizes, **rewards}
    return trainer_of(trl.GRPOTrainer, trl.GRPOConfig, folder, PROMPTS, **more, **settings)


GRPO = {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.2}
SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
CASES = {
    "grpo": (Grpo(), {**GRPO, "beta": 0.04}),
    "grpo, no reference": (Grpo(kl_coef=0.0), {**GRPO, "beta": 0.0}),
    "grpo, held strongly": (Grpo(kl_coef=2.0), {**GRPO, "beta": 2.0}),
    "grpo, narrow": (Grpo(clip_low=0.05, clip_high=0.01), {**GRPO, "beta": 0.04, "epsilon": 0.05, "epsilon_high": 0.01}),
    "dr_grpo": (DrGrpo(), {**GRPO, "loss_type": "dr_grpo"}),
    "dapo": (Dapo(), {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    "dapo, held": (replace(Dapo(), kl_coef=0.1), {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.1}),
    # TRL's epsilon_high is the largest weight itself; the paper's (equation 5) is how far it lies above 1.
    "cispo": (Cispo(), {"loss_type": "cispo", "epsilon_high": 1.28}),
    "gspo": (Gspo(), {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4}),
    "gspo, wide": (Gspo(clip_low=0.1, clip_high=0.1), {**SEQUENCE, "epsilon": 0.1, "epsilon_high": 0.1}),
    "gspo_token": (GspoToken(clip_low=0.1, clip_high=0.1), {**SEQUENCE, "epsilon": 0.1, "epsilon_high": 0.1}),
    "gspo, held": (Gspo(kl_coef=0.1), {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_grpo_and_its_kin(folder: Path, case: str) -> None:
    objective, settings = CASES[case]
    answers = rollout(folder)
    expected = theirs(grpo_trainer(folder, **settings), trl_batch(answers))
    assert_same(ours(folder, objective, [[a.segment()] for a in answers]), expected)


@pytest.mark.parametrize("case", ["grpo", "dr_grpo", "dapo", "cispo", "gspo", "gspo_token"])
def test_first_update_of_a_rollout(folder: Path, case: str) -> None:
    """Without old log-probabilities both take the policy's own, held still."""
    objective, settings = CASES[case]
    answers = rollout(folder, old=False)
    expected = theirs(grpo_trainer(folder, **settings), trl_batch(answers))
    assert_same(ours(folder, objective, [[a.segment()] for a in answers]), expected)


def test_entropy_term_of_a_mean_over_tokens(folder: Path) -> None:
    """TRL's entropy is always a mean over tokens; ours is summed like the policy's loss, which for dapo is the same."""
    answers = rollout(folder)
    trainer = grpo_trainer(folder, **CASES["dapo"][1], entropy_coef=0.05)
    have = ours(folder, replace(Dapo(), entropy_coef=0.05), [[a.segment()] for a in answers])
    assert_same(have, theirs(trainer, trl_batch(answers)))


def test_rloo(folder: Path) -> None:
    """TRL multiplies the advantage by the ratio of whole answers, the paper (arXiv:2402.14740) by their log-probability.

    At the policy that answered the gradients are the same; the values are not.
    """
    answers = rollout(folder, old=False)
    rewards = {"trainer": {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}}
    sizes = {"num_generations": 2, "per_device_train_batch_size": 6, "steps_per_generation": 1}
    trainer = trainer_of(trl.RLOOTrainer, trl.RLOOConfig, folder, PROMPTS, **sizes, **rewards)
    old_logps = torch.stack([x.sum() for x in logps_of(folder, answers)])
    expected = theirs(trainer, {**trl_batch(answers), "old_logps": old_logps})
    assert_same(ours(folder, Rloo(), [[a.segment()] for a in answers]), expected, value=False)
