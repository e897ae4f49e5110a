"""Objective x tuning x quantization x family: trained for two steps, saved, loaded and resumed; or refused with a reason.

The page docs/matrix.md is written from these results: LUTHIER_WRITE_PAGES=1 makes it anew.
"""

import itertools
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import losses, make_folder
from tunings import SMALL

from luthier.config.combinations import IMPOSSIBLE, QUANTIZATIONS, why_not
from luthier.config.load import load_config
from luthier.core.anatomy import plain_model
from luthier.core.errors import ConfigError
from luthier.core.registry import OBJECTIVES, REWARDS, TUNINGS
from luthier.core.types import Answer
from luthier.models.device import place
from luthier.models.load import load_for_inference
from luthier.models.policy import Policy
from luthier.models.reward_model import load_reward_model
from luthier.models.value import only_grades
from luthier.training.trainer import Trainer
from luthier.workflows.train import train

FAMILIES = ("llama", "gemma3", "phi3", "qwen3_moe")
LIKE = {
    **dict.fromkeys(("dr_grpo", "dapo", "dupo", "gspo", "gspo_token", "cispo", "rloo", "reinforce++"), "grpo"),
    **dict.fromkeys(("cpo", "simpo", "orpo"), "dpo"),
}
"""Objectives that are another formula over the same batches as one that is tried with everything."""
TRIED_WITH = {"lora", "full"}
"""Tunings that each of them is tried with itself, on one family."""


def is_tried(objective: str, tuning: str, quantization: str, family: str) -> bool:
    return objective not in LIKE or (tuning in TRIED_WITH and quantization == "none" and family == FAMILIES[0])


CELLS = [
    cell
    for cell in itertools.product(OBJECTIVES.names(), TUNINGS.names(), ("none", *QUANTIZATIONS), FAMILIES)
    if is_tried(*cell)
]
RESULTS: dict[tuple[str, ...], str] = {}
"""Cell -> "" where it works, or the reason why not."""
PAGE = Path(__file__).parents[2] / "docs/matrix.md"
SETTINGS = {
    "max_steps": 2, "save_steps": 1, "threads": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
    "plot_loss": False, "dtype": "float32", "cutoff_len": 64,
}  # fmt: skip
ROLLOUTS = {
    "rewards": ["early_letters"], "num_generations": 4, "max_completion_length": 4, "per_device_train_batch_size": 4,
    "rollout_minibatches": 1, "rollout_epochs": 1, "cutoff_len": 96,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyLetters:
    """Random answers differ in it."""

    may_hang: ClassVar[bool] = False

    def __call__(self, answer: Answer) -> float:
        return sum(token % 7 for token in answer.completion.tokens) / 7


@pytest.fixture(scope="module", autouse=True)
def early_letters() -> Generator[None]:
    """Put the reward on its shelf, for these tests only."""
    REWARDS.add("early_letters", EarlyLetters)
    yield
    del REWARDS._items["early_letters"]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, make_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> list[Trainer]:
    """Share tokens, do not wait for the disk, and hand out the trainers."""
    monkeypatch.setenv("LUTHIER_CACHE", str(shared_cache))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    trainers: list[Trainer] = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, resume=None: (trainers.append(self), fit(self, resume))[1])
    return trainers


def config_of(cell: tuple[str, ...], model: Path, rows: Path, run: Path, **more: Any) -> Any:
    objective, tuning, quantization, _ = cell
    rolls_out = OBJECTIVES.get(objective).rows == "prompt"
    settings = {
        **SETTINGS,
        **(ROLLOUTS if rolls_out else {}),
        "model_name_or_path": str(model),
        "dataset": str(rows),
        "output_dir": str(run),
        **more,
    }
    config = load_config(
        {**settings, "stage": objective, "finetuning_type": tuning, "quantization": quantization}
    ).config
    return replace(config, tuning=SMALL[tuning][0])


def check_moved(policy: Policy, model: Path, config: Any) -> None:
    """Nothing but the declared parameters differs from the base, and these do."""
    learns = SMALL[next(name for name, cls in TUNINGS.items() if type(config.tuning) is cls)][1]
    learning = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in policy.model.named_parameters() if learns(n)}
    assert learning
    base, _ = load_for_inference(replace(config.model, model_name_or_path=str(model)), place(config.model))
    after = {name.replace(".base_layer", ""): x for name, x in plain_model(policy.model).state_dict().items()}
    # A model that only grades has no output head.
    before = {name: x for name, x in base.state_dict().items() if name in after or name != "lm_head.weight"}
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved <= {n for n in before if learns(n)}
    assert bool(moved) == config.tuning.base_learns


def loaded(config: Any, run: Path) -> Policy:
    """What a finished run is for others: a reward model, or a model that answers."""
    if only_grades(config.objective.needs):
        return load_reward_model(str(run), config.model, place(config.model)).policy
    return Policy(load_for_inference(replace(config.model, model_name_or_path=str(run)), place(config.model))[0])


@pytest.mark.parametrize(("objective", "tuning", "quantization"), list(dict.fromkeys(cell[:3] for cell in CELLS)))
def test_cell(base, rows, pairs, tmp_path, quick, objective: str, tuning: str, quantization: str) -> None:
    family, model = base
    cell = objective, tuning, quantization, family
    if not is_tried(*cell):
        return
    kind = pairs if OBJECTIVES.get(objective).rows in ("pair", "tagged") else rows
    reason = why_not(tuning, quantization)
    if reason is not None:
        with pytest.raises(ConfigError, match=reason[:50]):
            config_of(cell, model, kind, tmp_path / "run")
        RESULTS[cell] = reason
        return
    whole, half = tmp_path / "whole", tmp_path / "half"
    config = config_of(cell, model, kind, whole)
    train(config, quiet=True)
    assert all(torch.isfinite(torch.tensor(float.fromhex(loss))) for loss in losses(whole).values())
    policy = quick[-1].accelerator.unwrap_model(quick[-1].policy).eval()
    check_moved(policy, model, config)
    batch = next(quick[-1].loader.windows(quick[-1].state.cursor)).batches[0]
    reads = config.objective.reads - ({"value"} if "rollouts" in config.objective.needs else set())
    with torch.no_grad():
        found, expected = loaded(config, whole)(batch, reads=reads), policy(batch, reads=reads)
    for name in reads:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    train(config_of(cell, model, kind, half, resume=str(whole / "checkpoint-1")), quiet=True)
    assert losses(half)[2] == losses(whole)[2]
    name = "adapter_model.safetensors" if not config.tuning.base_learns else "model.safetensors"
    assert (half / name).read_bytes() == (whole / name).read_bytes()
    shutil.rmtree(tmp_path)
    RESULTS[cell] = ""


def _alike(objective: str) -> str:
    return (
        f"what is said of {objective} holds for {', '.join(name for name, like in LIKE.items() if like == objective)}"
    )


def page() -> str:
    """The results as a table: a line a tuning, a column a quantization, and in each cell what works."""
    numbers = {each.reason: index for index, each in enumerate(IMPOSSIBLE, 1)}
    lines = [
        "# What goes with what",
        "",
        "Each cell names the objectives that were trained with this tuning and quantization, saved, loaded and resumed, "
        f"on tiny models of {len(FAMILIES)} families ({', '.join(FAMILIES)}). A number is the reason why not; it is also "
        "what you are told when you try. Made by `tests/contracts/test_matrix.py` from its own results.",
        "",
        f"{_alike('grpo')} and {_alike('dpo')}: other formulas over the same batches, each tried with "
        f"{' and '.join(sorted(TRIED_WITH))} itself.",
        "",
        f"| tuning | {' | '.join(('no quantization', *QUANTIZATIONS))} |",
        "|---" * (2 + len(QUANTIZATIONS)) + "|",
    ]
    for tuning in TUNINGS.names():
        cells = []
        for quantization in ("none", *QUANTIZATIONS):
            whole = [objective for objective in OBJECTIVES.names() if objective not in LIKE]
            found = {o: {RESULTS[o, tuning, quantization, f] for f in FAMILIES} for o in whole}
            works = [o for o, reasons in found.items() if reasons == {""}]
            reasons = sorted({numbers[r] for rs in found.values() for r in rs if r})
            cells.append(", ".join([*works, *(f"({n})" for n in reasons)]))
        lines.append(f"| {tuning} | {' | '.join(cells)} |")
    lines += ["", "## Reasons", ""]
    for each in IMPOSSIBLE:
        where = f", models with {each.trait}" if each.trait else ""
        what = f" with {', '.join(each.quantizations)}" if each.quantizations else ""
        lines.append(f"{numbers[each.reason]}. {', '.join(each.tunings)}{what}{where}: {each.reason}.")
    return "\n".join(lines) + "\n"


def test_page_is_current() -> None:
    if set(RESULTS) != set(CELLS):
        pytest.skip("only a part of the matrix was run")
    if os.environ.get("LUTHIER_WRITE_PAGES"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "run: make matrix"
