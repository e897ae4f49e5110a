"""Every tuning on the shelf: neutral at the start, trains only what it says, survives the disk, merges exactly."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from luthier.core.errors import ConfigError
from luthier.core.registry import TUNINGS
from luthier.tuning.freeze import Freeze
from luthier.tuning.full import Full
from luthier.tuning.lora import Lora

CASES = {
    "full": Full(),
    "freeze": Freeze(layers=1),
    "freeze-first": Freeze(layers=-1, modules=("mlp",)),
    "freeze-extra": Freeze(layers=1, extra_modules=("norm",)),
    "lora": Lora(rank=4),
    "lora-named": Lora(rank=4, targets=("q_proj", "v_proj"), alpha=6),
    "rslora": Lora(rank=4, rslora=True),
    "dora": Lora(rank=4, dora=True),
}
LEARNING = {
    "full": lambda n: True,
    "freeze": lambda n: "layers.1." in n,
    "freeze-first": lambda n: "layers.0.mlp" in n,
    "freeze-extra": lambda n: "layers.1." in n or n == "model.norm.weight",
    "lora": lambda n: "lora_" in n,
    "lora-named": lambda n: "lora_" in n and ("q_proj" in n or "v_proj" in n),
    "rslora": lambda n: "lora_" in n,
    "dora": lambda n: "lora_" in n,
}
IDS = torch.arange(5, 30)[None]


def fresh(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_every_tuning_of_the_shelf_has_a_case() -> None:
    assert {type(case) for case in CASES.values()} == {cls for _, cls in TUNINGS.items()}


@pytest.mark.parametrize("name", CASES)
def test_neutral_at_the_start(tiny: Path, name: str) -> None:
    expected = logits(fresh(tiny))
    torch.testing.assert_close(logits(CASES[name].apply(fresh(tiny)).eval()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_trains_exactly_what_it_says(tiny: Path, name: str) -> None:
    model = CASES[name].apply(fresh(tiny)).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.5)
    for _ in range(2):  # with B = 0 the first step moves only B
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if LEARNING[name](n)}


@pytest.mark.parametrize("name", CASES)
def test_save_load_and_merge_give_the_same_model(tiny: Path, tmp_path: Path, name: str) -> None:
    model = CASES[name].apply(fresh(tiny)).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))) * 0.02)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    if hasattr(model, "peft_config"):
        loaded = PeftModel.from_pretrained(fresh(tiny), str(tmp_path)).eval()
        torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)
        assert CASES[name].mergeable
        torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(logits(fresh(tmp_path)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (Lora(targets=("q_prj",)), "lora_target 'q_prj' is no linear layer of this model; it has down_proj, gate_proj"),
        (Lora(rank=33), "lora_rank 33 is above the size of"),
        (Freeze(layers=3), "tuning.layers is 3; this model has 2 decoder layers"),
        (Freeze(layers=0), "tuning.layers is 0"),
        (Freeze(layers=1, modules=("mpl",)), "no module is called 'mpl'; there are: .*mlp"),
    ],
)
def test_impossible_wishes_are_refused(tiny: Path, tuning, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning.apply(fresh(tiny))


def test_all_means_every_linear_layer_but_the_head(family_folder: Path) -> None:
    model = Lora(rank=2).apply(fresh(family_folder))
    linear = {n for n, m in fresh(family_folder).named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    tuned = {n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert tuned == linear
